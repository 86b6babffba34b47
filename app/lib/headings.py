"""How tables call their columns: a heading in words, digits that can be read, and what a column means."""

import streamlit as st

NUMBER = st.column_config.NumberColumn
_SHARE = "%.2f"
COLUMNS = {
    "open": st.column_config.LinkColumn("image", display_text="open", help="This image in the matching explorer.", width=56),
    "image_id": NUMBER("image id", format="%d", help="As the data has it."),
    "target": NUMBER("target", help="Of the image, in file order, counted from 0; -1 for none."),
    "match": NUMBER("target", help="That the query is matched to, counted from 0; -1 for none."),
    "query": NUMBER("query", help="Slot, counted from 0; -1 for none."),
    "n": NUMBER("number"),
    "score": NUMBER("score", format=_SHARE),
    "iou": NUMBER("IoU", format=_SHARE),
    "match_iou": NUMBER("IoU", help="With the matched target.", format=_SHARE),
    "best_iou": NUMBER("best IoU", help="With the target it overlaps most, matched or not.", format=_SHARE),
    "quality": NUMBER("quality", help="score^gamma times IoU^(1-gamma) with the matched target, 0 where unmatched.", format=_SHARE),
    "gain": NUMBER("gain", help="Score times IoU in this run minus in the baseline.", format="%.3f"),
    "baseline": NUMBER("baseline", help="Score times IoU in the baseline.", format="%.3f"),
    "entropy": NUMBER("entropy (bits)", help="Of the teacher's score.", format=_SHARE),
    "target_size": NUMBER("size (px)", help="Square root of the target's area.", format="%.0f"),
    "box_distance": NUMBER("box distance", help="1 - IoU of the teacher's box and the baseline's.", format=_SHARE),
    "score_distance": NUMBER("score distance", help="Between teacher and baseline.", format=_SHARE),
    "selected": st.column_config.CheckboxColumn("selected", help="Whether the method teaches with it."),
    "place": NUMBER("place", help="By quality, the best first.", width=60),
}

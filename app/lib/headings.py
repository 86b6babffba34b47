"""Gives the columns of tables a heading in words, a number of digits and a help text."""

import pandas as pd
import streamlit as st

NUMBER = st.column_config.NumberColumn
_SHARE = "%.2f"
COLUMNS = {
    "open": st.column_config.LinkColumn("image", display_text="open", help="Opens this image in the matching explorer.", width=56),
    "image_id": NUMBER("image id", format="%d", help="The id of the image in the dataset."),
    "target": NUMBER("target", help="Number of the target in its image, in file order from 0; a dash means no target."),
    "match": NUMBER("target", help="Target that the query is matched to, from 0; a dash means that it is matched to none."),
    "query": NUMBER("query", help="Number of the query (its slot), from 0; a dash means no query."),
    "n": NUMBER("errors"),
    "score": NUMBER("score", format=_SHARE),
    "iou": NUMBER("IoU", format=_SHARE),
    "match_iou": NUMBER("IoU", help="IoU of the box with the matched target.", format=_SHARE),
    "best_iou": NUMBER("best IoU", help="IoU of the box with the target it overlaps most, matched or not.", format=_SHARE),
    "quality": NUMBER("quality", help="score^gamma times IoU^(1-gamma) with the matched target; 0 if unmatched.", format=_SHARE),
    "gain": NUMBER("gain", help="Score times IoU in this run, minus the same in the baseline.", format="%.3f"),
    "baseline": NUMBER("baseline", help="Score times IoU in the baseline.", format="%.3f"),
    "entropy": NUMBER("entropy (bits)", help="Entropy of the teacher's score.", format=_SHARE),
    "target_size": NUMBER("size (px)", help="Square root of the target's area.", format="%.0f"),
    "box_distance": NUMBER("box distance", help="1 - IoU of the teacher's box with the baseline's.", format=_SHARE),
    "score_distance": NUMBER("score distance", help="Difference of the scores of teacher and baseline.", format=_SHARE),
    "selected": st.column_config.CheckboxColumn("selected", help="True if the method distils from this query."),
    "layer": NUMBER("layer", help="Decoder layer, from 0."),
    "place": NUMBER("rank", help="Rank by quality; 1 is the best.", width=60),
}


def dashed(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows whose numbers of targets and queries are empty where there is none, so that a table shows a dash there.

    Files say -1 there, and -2 in a match that training ignores.
    """
    numbers = [name for name in ("target", "match", "query", "source", "mate", "best_target") if name in rows]
    return rows.assign(**{name: rows[name].astype("Int64").mask(rows[name] < 0) for name in numbers})

import pandas as pd
import pytest

from workbench.analysis.defined import NOT_DEFINED
from workbench.views.summary import COLUMNS, readable, sortable

KNOWN = {"run": "a", "arm": "distilled", "seed": 0, "ap": 0.4321, "ap cat": 0.5, "churn": 0.25, "churn_n": 40, "parameters": 130158,
         "flops": 42349056, "agreement": None, "compute_seconds": 61.0, "commit": "abc"}  # fmt: skip
TABLE = pd.DataFrame([KNOWN, {**dict.fromkeys(KNOWN), "run": "b", "arm": "teacher"}], dtype=object)


def test_numbers_are_in_the_units_of_their_headings():
    frame, shown = readable(TABLE)
    first = frame.iloc[0]
    assert (first["ap"], first["ap cat"], first["churn"], first["churn_n"]) == (43.21, 50, 25, 40)
    assert (first["parameters"], first["flops"]) == pytest.approx((130.158, 0.042349056))
    assert shown["ap cat"].title == "AP cat"
    assert all(column.meaning.endswith(".") for column in shown.values())


def test_what_is_not_known_stays_empty_and_a_column_of_nothing_is_left_out():
    frame, shown = readable(TABLE)
    assert frame.iloc[1][["seed", "ap", "churn"]].isna().all()
    assert "agreement" not in frame
    assert list(frame.columns) == list(shown)
    assert list(readable(TABLE[["run", "ap"]].iloc[1:])[0].columns) == ["run", "ap"]


def test_a_class_called_like_a_column_or_with_braces_is_shown_under_its_own_name():
    table = TABLE[["run", "ap"]].assign(**{"ap {0}": 0.1, "ap 50": 0.2})
    _, shown = readable(table)
    assert [column.title for column in shown.values()] == ["run", "AP", "AP {0}", "AP 50"]


def test_a_number_stands_in_one_column_with_its_interval_and_texts_sort_as_numbers_do():
    ends = {"ap_low": 0.4, "ap_high": 0.465, "difference": -0.0512, "difference_low": -0.1, "difference_high": 0.0}
    table = pd.DataFrame([{**KNOWN, **ends}, {**KNOWN, "ap": 0.05, "ap_low": None, "ap_high": None}], dtype=object)
    frame, shown = readable(table)
    assert frame["ap"].tolist() == [" 43.2 [40.0, 46.5]", "  5.0"]
    assert frame["difference"][0] == " -5.1 [-10.0, +0.0]" and pd.isna(frame["difference"][1])
    assert shown["ap"].title == "AP [95 %]" and not set(ends) & {"ap_low", "ap_high", "difference_low"} & set(frame)
    assert sorted(frame["ap"]) == ["  5.0", " 43.2 [40.0, 46.5]"]


def test_a_number_with_an_interval_sorts_as_the_number_and_shows_both():
    rows = [(0.064, 0.048, 0.079), (-0.036, -0.049, -0.021), (None, None, None), (-0.076, -0.09, -0.062), (0.5, None, None)]
    ends = [dict(zip(("difference", "difference_low", "difference_high"), row, strict=True)) for row in rows]
    table = pd.DataFrame([{**KNOWN, **own} for own in ends], dtype=object, index=[3, 3, 1, 0, 2])
    style, shown, styled = sortable(table, images=list("abcde"))
    frame = style.data
    assert styled == {"difference"} and frame["images"].tolist() == list("abcde")
    assert frame["difference"].tolist()[:2] + frame["difference"].tolist()[3:] == pytest.approx([6.4, -3.6, -7.6, 50])
    assert frame["difference"].isna().tolist() == [False, False, True, False, False]
    html = style.to_html()
    assert all(f">{text}<" in html for text in ("+6.4 [+4.8, +7.9]", "-3.6 [-4.9, -2.1]", "-7.6 [-9.0, -6.2]", "+50.0"))
    assert shown["difference"].title == "difference in AP [95 %]"
    undefined = table.assign(gain=[0.1, NOT_DEFINED, None, None, None], gain_low=0.0, gain_high=0.2)
    style, _, styled = sortable(undefined)
    assert styled == {"difference"} and NOT_DEFINED in style.data["gain"].tolist()


def test_headings_of_ap_name_the_split_if_all_rows_share_it_and_headings_of_shares_their_unit():
    _, shown = readable(TABLE.assign(split=["test", None]))
    assert (shown["ap"].title, shown["ap cat"].title, shown["churn"].title) == ("AP (test)", "AP cat (test)", "churn (%)")
    _, shown = readable(TABLE.assign(split=["test", "val"]))
    assert shown["ap"].title == "AP" and "split" in shown


def test_every_summary_column_that_is_an_estimate_has_its_n():
    for name in ("churn", "layers_churn", "agreement", "quality"):
        assert f"{name}_n" in COLUMNS

"""The picture and the table of rooms in the page of the architecture are those of docs/rooms.toml."""

from docs.rooms import PAGE, PICTURE, page_with_table, picture, rooms


def test_the_committed_picture_is_the_one_that_the_table_of_rooms_makes():
    assert PICTURE.read_text(encoding="utf-8") == picture(rooms()), "docs/images/rooms.svg is out of date: run python -m docs.rooms"


def test_the_table_of_the_page_is_the_one_that_the_table_of_rooms_makes():
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page, rooms()), "docs/architecture.md is out of date: run python -m docs.rooms"
    assert "](images/rooms.svg)" in page

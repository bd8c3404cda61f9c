"""One spelling of a value."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medgen.canonical import canonical_json, canonical_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=8), st.data())
def test_an_object_is_spelled_the_same_whatever_of_it_is_known(value: dict[str, Any], data: st.DataObject) -> None:
    known = data.draw(st.sets(st.sampled_from(sorted(value)))) if value else set()
    others = {name: of for name, of in value.items() if name not in known}
    assert canonical_object(others, {name: canonical_json(value[name]) for name in known}) == canonical_json(value)
    everything = {name: canonical_json(of) for name, of in value.items()}
    assert canonical_object(dict.fromkeys(value, "another"), everything) == canonical_json(value)

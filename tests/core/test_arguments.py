"""What is left of jsonargparse's messages."""

import pytest

from collimate.arguments import plain
from collimate.configurable import at_least

BUILT = """Does not validate against any of the Union subtypes
Subtypes: [<class 'collimate.training.method.Method'>, <class 'NoneType'>]
Errors:
  - There is no room,
    nor will there be.
  - Expected a <class 'NoneType'>
Given value type: <class 'jsonargparse._namespace.Namespace'>
Given value: Namespace(class_path='collimate_vision_language.CLIP', init_args=Namespace(embed_dim=0))"""


def test_of_a_class_that_refuses_its_settings_its_own_words_are_left():
    assert plain(BUILT) == "There is no room,\n  nor will there be."


def test_of_a_value_the_place_and_what_it_was_are_left():
    message = """Parser key "trainer.precision":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal[64, 32], <class 'NoneType'>]
  Errors:
    - Expected a typing.Literal[64, 32]
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: 12"""
    assert plain(message) == 'Parser key "trainer.precision":\n  Expected a typing.Literal[64, 32]\n  Got value: 12'


def test_none_is_told_where_nothing_else_is():
    message = BUILT.replace("  - There is no room,\n    nor will there be.\n", "")
    assert plain(message) == "Expected a <class 'NoneType'>"


def test_other_messages_stay_as_they_are():
    assert plain("batch_size is 0.\nGiven value: none") == "batch_size is 0.\nGiven value: none"


def test_numbers_that_are_too_small_are_named():
    at_least(1, size=1, other=None)
    with pytest.raises(ValueError, match="size is 0, where 1 or more is expected"):
        at_least(1, other=2, size=0)
    with pytest.raises(ValueError, match="rate is nan"):
        at_least(0, rate=float("nan"))

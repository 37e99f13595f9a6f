import pytest

from dipole_vla.splits import refuse_collection, refuse_evaluation
from navsim_adapter.errors import InputError


@pytest.mark.parametrize("split", ["test", "navtest", "navhard_two_stage"])
def test_collecting_on_an_evaluation_split_is_refused_unless_allowed(split):
    with pytest.raises(InputError, match="allow-eval-split"):
        refuse_collection(split, allow_eval_split=False)
    refuse_collection(split, allow_eval_split=True)


def test_collecting_on_training_splits_is_fine():
    for split in ("trainval", "navtrain", "mini"):
        refuse_collection(split, allow_eval_split=False)


def test_one_shared_token_is_a_leak():
    with pytest.raises(InputError, match="1 of 3 scenes"):
        refuse_evaluation("test", ["a", "b", "c"], "trainval", {"c", "d"}, allow_eval_split=False)
    assert refuse_evaluation("test", ["a", "b", "c"], "trainval", {"c"}, allow_eval_split=True)
    assert not refuse_evaluation("test", ["a", "b"], "trainval", {"c"}, allow_eval_split=False)


def test_the_same_split_by_name_is_a_leak():
    with pytest.raises(InputError, match="rl_split 'test'"):
        refuse_evaluation("test", ["a"], "test", set(), allow_eval_split=False)

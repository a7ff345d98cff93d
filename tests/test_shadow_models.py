"""Shadow models: halves of a pool, records that resume, an attack that finds what was not forgotten."""

import pytest
import torch
from tiny import tiny_run

from hacore import results
from hacore.errors import HacoreError
from hacore.experiments import prepare, shadow_splits, shadows


def pool_run(**fields):
    return tiny_run(scenario="random-samples", forget=60, recipe="memorising", **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shadows")
    list(shadows(pool_run(), ["original", "retrain"], folder, models=6))
    return folder


def test_each_model_forgets_half_of_the_pool_and_never_sees_the_rest():
    whole = prepare(pool_run()).split
    splits, pool, forgot = shadow_splits(whole, 8, seed=0)
    assert torch.equal(pool, whole.forget)
    assert (forgot.sum(dim=1) == 30).all()
    assert (forgot.sum(dim=0) == 4).all()
    for split, half in zip(splits, forgot, strict=True):
        assert torch.equal(split.forget, pool[half])
        assert torch.equal(split.retain, whole.retain)
        unseen = pool[~half]
        assert not torch.isin(unseen, torch.cat([split.retain, split.forget, split.validation])).any()
    again = shadow_splits(whole, 8, seed=0)[2]
    assert torch.equal(forgot, again)
    assert not torch.equal(forgot, shadow_splits(whole, 8, seed=1)[2])


def test_the_attack_finds_members_in_the_original_and_none_in_retrain(folder):
    found = results.load(folder).set_index("method")
    assert found.loc["original", "ulira_auc"] > found.loc["retrain", "ulira_auc"] + 5
    assert found.loc["original", "klom_forget_mean"] > found.loc["original", "klom_validation_mean"]
    assert found["models"].tolist() == [6, 6]
    assert found["pool"].tolist() == [60, 60]


def test_records_are_not_made_again(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = list(shadows(pool_run(), ["original", "retrain"], folder, models=6))
    assert [record["run"]["method"] for record in again] == ["original", "retrain"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("run", "models", "message"),
    [
        (tiny_run(), 4, "need random samples"),
        (pool_run(), 1, "1 shadow models"),
    ],
)
def test_requests_that_say_nothing_are_refused(run, models, message, tmp_path):
    with pytest.raises(HacoreError, match=message):
        list(shadows(run, ["original"], tmp_path, models=models))

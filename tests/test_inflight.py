"""What a worker has in hand, taken to its end in this thread by a real engine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.stores import exact_checkpoint
from service import sample
from service.catalogue import Catalogue
from service.engine import Engine
from service.inflight import Inflight, Previews, Share
from service.job import Part
from service.messages import Batch
from service.policy import ByKey, Policy, ShortestFirst
from service.request import Resolved, SampleRequest, resolve
from service.sample import Images
from tests.helpers import worker_state


class Hands(Inflight):
    """In-flight work that ends when there is none left, and what came of it."""

    def __init__(self, store: Path, policy: Policy):
        self.sampled: list[Share] = []
        self.failed: list[Share] = []
        self.errors: list[Exception] = []
        self.turns = 0
        self.previews: list[tuple[Share, int, Previews]] = []
        self.dropped_after_a_turn: list[Share] = []
        super().__init__(Engine(store, torch.device("cpu"), 8), policy, self.take, self.fail, self.look, self.show)

    def take(self, shares: list[Share]) -> None:
        self.sampled += shares
        self.end_when_empty()

    def fail(self, shares: list[Share], error: Exception) -> None:
        self.failed += shares
        self.errors.append(error)
        self.end_when_empty()

    def end_when_empty(self) -> None:
        if self.is_idle:
            self.close()

    def show(self, share: Share, evaluation: int, estimates: Previews) -> None:
        self.previews.append((share, evaluation, estimates))
        share.is_being_shown = False

    def look(self) -> None:
        self.turns += 1
        self.drop(self.dropped_after_a_turn)

    def share(self, job_id: str, **fields: object) -> Share:
        """A job for the points, claimed whole."""
        offered = Catalogue([worker_state(*self.engine.facts)]).find("points", 128)
        assert offered is not None
        request = SampleRequest.model_validate({"dataset": "points", "D": 128} | fields)
        resolved = resolve(request, offered, "exact", 64, 10**6)
        part = Part(job_id, 0, resolved.count)
        batch = Batch(job_id, sample.lane(resolved), (part,), {job_id: resolved.model_dump_json()}, {job_id: 0.0})
        (share,) = self.shares_of(batch)
        return share


@pytest.fixture
def store(tmp_path: Path) -> Path:
    exact_checkpoint(tmp_path / "store", 128.0)
    return tmp_path / "store"


def images(share: Share) -> Images:
    (part,) = share.parts
    output = sample.output(share.walks(part))
    assert isinstance(output, Images)
    return output


@pytest.mark.parametrize("policy", [ShortestFirst(60.0), ByKey()], ids=["in-flight", "by-key"])
def test_jobs_that_share_calls_end_as_they_would_alone(store: Path, policy: Policy) -> None:
    """Other steps, other seeds, more images than a call takes: the shortest ends first, and every byte is its own."""
    hands = Hands(store, policy)
    requests = {"long": {"count": 11, "steps": 9, "seed": 1}, "short": {"steps": 2, "seed": 5}}
    if isinstance(policy, ShortestFirst):
        shares = [hands.share(name, **fields) for name, fields in requests.items()]
        hands.enter(shares)
        hands.run()
        assert [share.job_id for share in hands.sampled] == ["short", "long"]
        assert shares[0].widest > 1
    else:
        shares = [hands.share("long", **requests["long"])]
        hands.enter(shares)
        hands.run()
    for share in shares:
        alone = Hands(store, policy)
        same = alone.share(share.job_id, **requests[share.job_id])
        alone.enter([same])
        alone.run()
        assert np.array_equal(images(share).images, images(same).images)
        assert share.evaluations_done == share.images * share.request.evaluations
        assert share.arithmetic == "float32"


@pytest.mark.parametrize("policy", [ShortestFirst(60.0), ByKey()], ids=["in-flight", "by-key"])
def test_guided_jobs_end_as_they_would_alone(store: Path, policy: Policy) -> None:
    """Evaluations of the model and of its guide take turns, and none is of the wrong one."""
    exact_checkpoint(store, 128.0, "worse", seed=1)
    choices: tuple[dict[str, object], ...] = ({}, {"guidance": 2.0}, {"guidance": 2.0, "guide": "worse-d128"})
    hands = Hands(store, policy)
    shares = [hands.share(str(choice), count=3, steps=4, seed=5, **choice) for choice in choices]
    hands.enter(shares)
    hands.run()
    assert {share.job_id for share in hands.sampled} == {share.job_id for share in shares}
    ends = []
    for share, choice in zip(shares, choices, strict=True):
        alone = Hands(store, policy)
        same = alone.share(share.job_id, count=3, steps=4, seed=5, **choice)
        alone.enter([same])
        alone.run()
        ends.append(images(share).images.tobytes())
        assert np.array_equal(images(share).images, images(same).images)
        assert share.evaluations_done == 3 * 7 * (2 if choice else 1)
        assert share.checkpoint == hands.engine.facts[0].checkpoint_sha256
    assert len(set(ends)) == 3


def test_jobs_of_other_weights_do_not_share_a_call_by_key(store: Path) -> None:
    """They are of one lane, for they cost the same."""
    hands = Hands(store, ByKey())
    shares = [hands.share(str(bits), count=3, steps=4, seed=5, bits=bits) for bits in (None, 2)]
    hands.enter(shares)
    hands.run()
    assert shares[0].arithmetic == "float32"
    assert shares[1].arithmetic == "float32, weights of 2 bits"
    assert [share.widest for share in shares] == [3, 3]


def test_a_guide_that_was_replaced_fails_its_jobs(store: Path) -> None:
    exact_checkpoint(store, 128.0, "worse", seed=1)
    hands = Hands(store, ShortestFirst(60.0))
    share = hands.share("job", steps=4, guidance=2.0, guide="worse-d128")
    exact_checkpoint(store, 128.0, "worse", seed=2)
    hands.engine.store.scan()
    hands.engine.offer()
    hands.engine.settle()
    hands.enter([share])
    hands.run()
    assert hands.failed == [share]
    assert "replaced" in str(hands.errors[0])


def test_what_is_dropped_leaves_at_the_next_evaluation(store: Path) -> None:
    hands = Hands(store, ShortestFirst(60.0))
    dropped, kept = hands.share("dropped", count=3, steps=20), hands.share("kept", count=2, steps=20)
    hands.dropped_after_a_turn = [dropped]
    hands.enter([dropped, kept])
    hands.watch()
    hands.stir()
    hands.run()
    assert hands.turns == 1
    assert dropped.evaluations_done == 3, "one evaluation of each of its images"
    assert kept.evaluations_done == 2 * 39
    assert hands.sampled == [kept]


def test_who_watches_is_told_when_something_has_come_or_is_about_to_leave(store: Path) -> None:
    hands = Hands(store, ShortestFirst(60.0))
    hands.watch()
    assert hands.turns == 1, "at once when there is nothing to compute"
    hands.enter([hands.share("job", steps=5)])
    hands.watch()
    hands.run()
    assert hands.turns == 2, (
        "not after each of nine turns, for nothing came: at the end, to fill the place that gets free"
    )


def test_a_failed_call_fails_the_jobs_in_it_alone(store: Path) -> None:
    hands = Hands(store, ShortestFirst(60.0))
    good, bad = hands.share("good", steps=3), hands.share("bad", steps=3)
    bad.cohorts[0].start = 7  # there is no such image
    hands.enter([bad])
    hands.run()
    assert hands.failed == [bad]
    again = Hands(store, ShortestFirst(60.0))
    again.enter([good])
    again.run()
    assert again.sampled == [good]


@pytest.mark.parametrize("choice", [{}, {"guidance": 2.0}], ids=["plain", "guided"])
def test_a_share_is_shown_evenly_often_with_all_its_images(store: Path, choice: dict[str, object]) -> None:
    """Three times on its way, as the estimate of that evaluation has it."""
    hands = Hands(store, ShortestFirst(60.0))
    share = hands.share("shown", count=11, steps=9, seed=1, previews=3, trajectory=True, **choice)
    silent = hands.share("silent", count=2, steps=9, seed=1)
    hands.enter([share, silent])
    hands.run()
    assert {each.job_id for each, _, _ in hands.previews} == {"shown"}
    assert isinstance(share.request, Resolved)
    levels = share.request.levels(share.request.range(0.002, 80.0))
    evaluations = share.request.evaluations
    assert [at * 4 // evaluations for _, at, _ in hands.previews] == [1, 2, 3]
    (part,) = share.parts
    for _, _, estimates in hands.previews:
        pixels = np.concatenate([each.images() for each in estimates[part]])
        assert pixels.shape == images(share).images.shape
        assert {each.sigma for each in estimates[part]} <= set(levels)

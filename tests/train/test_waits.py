"""A step that is not logged waits for no device: shown on one that is computed on the CPU and counts what waits for it.

What remains is in `ALLOWED`, with its reason.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from tests.forked import side_by_side
from tests.laws.cases import DRAWING, RECIPES, batch_for, run_document, tiny_model

BLOCKING, READ = "blocking copy to the device", "_local_scalar_dense"
#: recipe -> what its second update waits for, and how often.
ALLOWED = {
    # Diffusers draws the first latents of every call of a pipeline on the host, for numbers that no device changes:
    # one call for the rollout, and one for each prediction at a visited state.
    **{recipe: {BLOCKING: None} for recipe in DRAWING},
    # A reward that is not finite, or has no gradient, ends the run before anything is trained on it.
    **{recipe: {BLOCKING: None, READ: 1} for recipe in DRAWING - {"flow_opd"}},
    # Samples of the first update are trained on again. The conditions of their prompts are read by a call of the
    # pipeline each, which stops at its network.
    # A rollout that is trained on again asks its rewards no more.
    "flow_grpo_updates": {BLOCKING: None},
    "flow_grpo_trust": {BLOCKING: None},
    "online_dpo": {BLOCKING: 2},
    "diffusion_nft": {BLOCKING: 2},
    "awm_ema": {BLOCKING: 2},
    "dgpo": {BLOCKING: 2},
    "crd": {BLOCKING: 2},
    # Two smoothed copies of the images are judged, each for every step that the gradient reaches.
    "adjoint_gated": {BLOCKING: None, READ: 4},
}


def _count(rank: int, file: str) -> None:
    """Write what the second update of each recipe waits for; in a process of its own, which the device stays in."""
    from benchmarks.far_device import NAME, Far, watched
    from benchmarks.updates import updating
    from flowhooks.train.validation import on_device

    warnings.simplefilter("ignore")
    model, found = tiny_model(), {}
    model.pipe.to(NAME)
    assert all(isinstance(each, Far) for each in model.transformer.parameters())
    for recipe in RECIPES:
        calls = 0
        with updating(model, run_document(recipe, "lora"), lambda i: on_device(batch_for(i), model.device)) as (
            session,
            update,
        ):
            update()
            player = getattr(session.source, "player", None)
            if player is not None:
                own = player._call

                def counted(*args, own=own):
                    nonlocal calls
                    calls += 1
                    own(*args)

                player._call = counted
            with watched() as traffic:
                update()
        found[recipe] = {"waits": dict(traffic.waits), "places": traffic.places, "calls": calls}
    with watched() as traffic:
        float(model.transformer.pos_embed.proj.bias[0])
    found["a number that is read"] = {"waits": dict(traffic.waits), "places": traffic.places, "calls": 0}
    Path(file).write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    file = tmp_path_factory.mktemp("waits") / "waits.json"
    side_by_side(_count, str(file), count=1)
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_update_that_is_not_logged_waits_for_no_device(recipe, counted):
    found = counted[recipe]
    allowed = {name: found["calls"] if n is None else n for name, n in ALLOWED.get(recipe, {}).items()}
    assert found["waits"] == allowed, "\n".join(sorted(set(found["places"])))


def test_a_number_that_is_read_is_waited_for(counted):
    assert counted["a number that is read"]["waits"] == {READ: 1}

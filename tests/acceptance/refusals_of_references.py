"""Runs with references, images that the pipeline is given beside the prompt, and with rewards, that are refused before
weights load."""

from __future__ import annotations

from tests.acceptance.refusal_makers import (
    PROMPTED,
    Refusal,
    prompt_file,
    referring,
    rewarded,
    served,
    twice_referring,
    written,
)

REFERENCES: dict[str, Refusal] = {
    "references for a pipeline that takes no image": Refusal(
        make=referring(), words=("data.json: $: ", "holds references, and the pipeline takes no image")
    ),
    "references for an argument that there is not": Refusal(
        make=referring(reference_argument="last_image"),
        words=("data.json: $: ", "holds references for 'last_image'; the pipeline takes no image"),
    ),
    "two references of a sample for an argument that takes one": Refusal(
        make=twice_referring,
        words=("data.json: $: ", "6 of 6 samples have up to 2 references for 'image', which takes one image: "),
    ),
    "references of prompts for a pipeline that takes no image": Refusal(
        make=prompt_file("p.jsonl", b'{"prompt": "a", "images": {"image": "absent.png"}}'),
        words=("$.hooks[1].prompts: ", "the prompt 'a' names references for 'image'; the pipeline takes images in no"),
    ),
    "references of prompts that cannot be read": Refusal(
        make=prompt_file("p.jsonl", b'{"prompt": "a", "images": ["absent.png"]}'),
        words=("$.hooks[1].prompts: ", "absent.png cannot be read: there is no such file"),
    ),
    "many references of prompts that cannot be read": Refusal(
        make=prompt_file("p.jsonl", b"\n".join(b'{"prompt": "a", "images": "%d.png"}' % number for number in range(7))),
        words=("$.hooks[1].prompts: ", "2 more images of prompts cannot be read"),
    ),
    "a reward that compares prompts without references": Refusal(
        make=rewarded({}, {**PROMPTED, "prompts": ["a", "b"]}),
        words=(
            "$.hooks[0].rewards[0]: ",
            "compares each image with its reference, which 2 of 2 prompts lack: a, b; name them under `images`",
        ),
    ),
    "a reward that compares prompts outside masks of the data": Refusal(
        make=rewarded({"outside_mask": True}, {**PROMPTED, "prompts": ["a", "b"]}),
        words=("$.hooks[0].rewards[0]: ", "`outside_mask` reads the masks of the data, and this run draws `prompts`"),
    ),
    "a server that is sent masks of the data for prompts": Refusal(
        make=served({"mask": True}, prompts=["a", "b"]),
        words=("$.hooks[0].rewards[0]: ", "`mask` reads the masks of the data, and this run draws `prompts`"),
    ),
    "a server that is sent references that prompts have not": Refusal(
        make=served({"references": True}, prompts=["a", "b"]),
        words=("$.hooks[0].rewards[0]: ", "compares each image with its reference, which 2 of 2 prompts lack: a, b"),
    ),
    "pairs of one image": Refusal(
        make=served({"judges": "pairs"}, group_size=1),
        words=("$.hooks[0].rewards[0].judges: ", "together ('pairs'), and `group_size` is 1; set it to 2 or more"),
    ),
    "a token that the environment does not hold": Refusal(
        make=served({"token_env": "NO_SUCH_TOKEN"}),
        words=("$.hooks[0].rewards[0].token_env: ", "names 'NO_SUCH_TOKEN', and this environment variable is not set"),
    ),
    "an address with a password": Refusal(
        make=served({"url": "http://me:hidden@127.0.0.1/"}),
        words=("$.hooks[0].rewards[0].url: ", "this address holds a user name or password; take it out"),
    ),
    "an address of another kind": Refusal(
        make=served({"url": "ftp://127.0.0.1/"}),
        words=("$.hooks[0].rewards[0].url: ", "'ftp://127.0.0.1/' has the wrong form; expected something like"),
    ),
    "records that GenEval does not know": Refusal(
        make=served(
            {"type": "geneval"},
            prompts=[{"prompt": "a", "include": [{"class": "dog", "count": 1}]}, {"prompt": "b", "include": []}],
        ),
        words=("$.hooks[0].rewards[0]: ", "1 of 2 records are none of GenEval: b; that of 'b' has no list under"),
    ),
    "a gradient of what has none": Refusal(
        make=written(
            data=None,
            hooks=[
                {"type": "adjoint_target", "rewards": [{"type": "http", "url": "http://127.0.0.1:9/"}]},
                {**PROMPTED, "sampler": "ode", "last_steps": 2},
            ],
        ),
        words=("$.hooks[0].rewards[0]: ", "'http' has no gradient, which this method climbs; give it the weight 0"),
    ),
    "a reward that compares samples of the data without references": Refusal(
        make=rewarded({"reference": 1}, {"type": "on_policy_rollout", "group_size": 2}),
        words=(
            "$.hooks[0].rewards[0]: ",
            "compares each image with its reference number 2, which 6 of 6 samples of the data lack: ",
            "no `reference_dropout`",
        ),
    ),
}

"""An entry on disk: what is written is what is read, in one canonical form."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

from llfc_core.store import CorruptEntry, Entry
from llfc_core.store.entry import read_entry, read_manifest, write_entry
from tests.helpers import identical

FACTS = {"error": 1.25, "loss": math.nan, "recipe": {"net": ["mlp", [3, 4]], "θ": None}, "n": 7}


def entry() -> Entry:
    generator = torch.Generator().manual_seed(0)
    return Entry(
        {
            "weights": {
                "fc1.weight": torch.randn(5, 3, generator=generator),
                "fc1.bias": torch.tensor([0.0, -0.0, math.inf, math.nan, 1e-45]),
                "half": torch.randn(4, generator=generator).bfloat16(),
                "steps": torch.tensor(3),
                "none": torch.empty(0, 2),
            },
            "optimiser": {},
        },
        FACTS,
    )


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    write_entry(tmp_path, entry())
    found = read_entry(tmp_path)
    assert found.groups.keys() == {"weights", "optimiser"}
    for name, tensor in entry().groups["weights"].items():
        assert found.groups["weights"][name].dtype == tensor.dtype
        assert found.groups["weights"][name].shape == tensor.shape
        assert torch.equal(
            found.groups["weights"][name].contiguous().flatten().view(torch.uint8),
            tensor.flatten().view(torch.uint8),
        )
    assert found.groups["optimiser"] == {}
    assert math.isnan(found.facts.pop("loss"))
    assert found.facts == {k: v for k, v in FACTS.items() if k != "loss"}


def test_tensors_that_are_not_contiguous_are_written_as_they_look(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T
    write_entry(tmp_path, Entry({"weights": {"a": tensor}}, {}))
    assert identical(read_entry(tmp_path).groups["weights"], {"a": tensor})


def test_read_tensors_may_be_written_to(tmp_path):
    write_entry(tmp_path, Entry({"weights": {"a": torch.zeros(2)}}, {}))
    read_entry(tmp_path).groups["weights"]["a"].add_(1)
    assert identical(read_entry(tmp_path).groups["weights"], {"a": torch.zeros(2)})


def test_the_same_entry_gives_the_same_bytes(tmp_path):
    shuffled = Entry(dict(reversed(entry().groups.items())), dict(reversed(FACTS.items())))
    for folder, value in (("a", entry()), ("b", shuffled)):
        (tmp_path / folder).mkdir()
        write_entry(tmp_path / folder, value)
    for name in ("manifest.json", "weights.safetensors", "optimiser.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_manifest_seals_each_file_and_itself(tmp_path):
    write_entry(tmp_path, entry())
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest["files"].keys() == {"weights.safetensors", "optimiser.safetensors"}
    for name, seal in manifest["files"].items():
        content = (tmp_path / name).read_bytes()
        assert seal == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    own = manifest.pop("sha256")
    body = json.dumps(manifest, sort_keys=True).encode()
    assert own == hashlib.sha256(body).hexdigest()


def test_read_manifest_needs_no_tensors(tmp_path):
    write_entry(tmp_path, Entry(entry().groups, {"error": 2.5}))
    (tmp_path / "weights.safetensors").write_bytes(b"not read")
    facts, files = read_manifest(tmp_path)
    assert facts == {"error": 2.5}
    assert files["weights.safetensors"]["bytes"] > 100


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"facts": {}}',
        b'{"facts": {}, "files": {}}',
        b'{"facts": [], "files": []}',
        b'{"facts": {}, "files": {"weights.safetensors": 1}, "sha256": "0"}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
    ids=lambda content: f"{content[:24]!r}+{len(content)}",
)
def test_anything_but_a_manifest_is_corrupt(tmp_path, manifest):
    write_entry(tmp_path, entry())
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(CorruptEntry, match=r"manifest\.json"):
        read_entry(tmp_path)


def test_a_manifest_that_means_the_same_in_other_bytes_is_corrupt(tmp_path):
    write_entry(tmp_path, entry())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), sort_keys=True, indent=2))
    with pytest.raises(CorruptEntry, match=r"manifest\.json"):
        read_manifest(tmp_path)

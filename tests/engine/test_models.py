"""The engine's model: folders, hub ids, and the making of the default model."""

import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gadfly.engine import models
from gadfly.engine.models import EOS, MARKER, ModelUnavailable, check_folder, make_default, resolve
from gadfly.errors import BadSettings
from gadfly.settings import DEFAULT_MODEL, Settings
from tests.support.engines import made_default_model


def _write_model(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = _write_model(tmp_path / "m", "config.json", "tokenizer.json", "model.safetensors")
    model = resolve(str(folder), default=tmp_path)
    assert (model.name, model.is_local) == (str(folder), True)


def test_a_hub_id_is_looked_up_and_left_to_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct"  # the cache layout of huggingface_hub
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0a")
    config = _write_model(cached / "snapshots" / "0a", "config.json") / "config.json"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = resolve("Qwen/Qwen2.5-0.5B-Instruct", default=tmp_path)
    assert (model.name, model.is_local, model.config) == ("Qwen/Qwen2.5-0.5B-Instruct", False, config)
    with pytest.raises(ModelUnavailable, match="models/mine is neither a folder here nor"):
        resolve("models/mine", default=tmp_path)


def test_a_pinned_folder_is_compared_with_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _write_model(tmp_path / "m", "config.json", "tokenizer.json", "model.safetensors")
    monkeypatch.setenv("GADFLY_MODEL", str(folder))
    assert models.main(["--hash"]) == 0
    pin = capsys.readouterr().out.strip()
    assert resolve(str(folder), default=tmp_path, revision=pin).folder == folder
    (folder / "model.safetensors").write_text("other weights")
    with pytest.raises(BadSettings, match=f"GADFLY_MODEL_REVISION is {pin}"):
        resolve(str(folder), default=tmp_path, revision=pin)


def test_a_pinned_hub_model_is_looked_up_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct" / "snapshots"
    config = _write_model(snapshots / ("0a" * 20), "config.json") / "config.json"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("Qwen/Qwen2.5-0.5B-Instruct", default=tmp_path, revision="0a" * 20).config == config
    with pytest.raises(ModelUnavailable, match="hub cannot be reached"):
        resolve("Qwen/Qwen2.5-0.5B-Instruct", default=tmp_path, revision="0b" * 20)
    with pytest.raises(BadSettings, match="give a commit"):
        resolve("Qwen/Qwen2.5-0.5B-Instruct", default=tmp_path, revision=f"sha256:{'ab' * 32}")


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "nothing", "a/b/c", ""])
def test_other_names_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable):
        resolve(name, default=tmp_path)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), "config.json"),
        (("config.json", "model.safetensors"), "tokenizer"),
        (("config.json", "tokenizer.json"), "weights"),
    ],
)
def test_an_incomplete_folder_is_refused_with_the_missing_part(
    tmp_path: Path, names: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(ModelUnavailable, match=missing):
        check_folder(_write_model(tmp_path / "m", *names))


class Making:
    """Replaces download and conversion: writes a small folder, or raises `failure`."""

    def __init__(self) -> None:
        self.times = 0
        self.failure: BaseException | None = None
        self.entered = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def make(self, home: Path, report: models.Report = models.say) -> Path:
        return make_default(
            home / "models" / DEFAULT_MODEL,
            report=report,
            fetch=lambda work, _: work / "some.gguf",
            convert=self._convert,
        )

    def _convert(self, gguf: Path, folder: Path, report: models.Report) -> None:
        self.times += 1
        _write_model(folder, "config.json")
        self.entered.set()
        assert self.may_end.wait(10)
        if self.failure:
            raise self.failure
        (folder / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def making() -> Making:
    return Making()


def test_the_default_model_is_made_once(tmp_path: Path, making: Making) -> None:
    folder = making.make(tmp_path)
    assert making.make(tmp_path) == folder == tmp_path / "models" / DEFAULT_MODEL
    assert making.times == 1
    assert set(json.loads((folder / MARKER).read_text())["files"]) == {"config.json", "model.safetensors"}


DAMAGE = [  # damage to the folder, why the model must be made again
    (lambda folder: (folder / MARKER).unlink(), "no marker: never completed"),
    (lambda folder: (folder / MARKER).write_text("{"), "marker truncated"),
    (lambda folder: (folder / MARKER).write_text('{"recipe": 0, "files": {}}'), "made by an older conversion"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"wei"), "weights truncated"),
    (lambda folder: (folder / "config.json").unlink(), "a file is missing"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_a_damaged_default_model_is_made_again(tmp_path: Path, making: Making, damage: object, why: str) -> None:
    folder = making.make(tmp_path)
    assert callable(damage)
    damage(folder)
    assert making.make(tmp_path) == folder, why
    assert making.times == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in folder.parent.iterdir() if "making" in path.name] == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_is_cleaned_up(tmp_path: Path, making: Making, failure: BaseException) -> None:
    making.failure = failure
    with pytest.raises((KeyboardInterrupt, ModelUnavailable)):
        making.make(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f".{DEFAULT_MODEL}.lock"]
    making.failure = None
    assert (making.make(tmp_path) / MARKER).exists()


def test_the_next_call_cleans_up_a_killed_conversion(tmp_path: Path, making: Making) -> None:
    _write_model(tmp_path / "models" / f".{DEFAULT_MODEL}.making-abc", "half")
    making.make(tmp_path)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [f".{DEFAULT_MODEL}.lock", DEFAULT_MODEL]


def test_of_two_processes_one_makes_the_model_and_the_other_waits(tmp_path: Path, making: Making) -> None:
    making.may_end.clear()
    reports: list[str] = []
    first = threading.Thread(target=making.make, args=(tmp_path,))
    first.start()
    assert making.entered.wait(10)
    second = threading.Thread(target=making.make, args=(tmp_path, reports.append))
    second.start()
    while not reports:
        second.join(0.01)
    assert "another process" in reports[0]
    making.may_end.set()
    first.join()
    second.join()
    assert making.times == 1


def test_a_full_disk_is_reported_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="MB are free"):
        make_default(tmp_path, space_needed=10**18)


PIP = [  # stderr of pip, sentence for the user, why this row exists
    ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n", "another hash", "tampered"),
    ("/usr/bin/python: No module named pip\n", "pip is not installed", "an environment without pip"),
    ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full", "no space"),
    (
        "WARNING: Retrying\nERROR: No matching distribution found for x\n",
        "No matching distribution found for x.",
        "no network",
    ),
    ("", "gave no reason", "no output"),
]


@pytest.mark.parametrize(("stderr", "sentence", "why"), PIP)
def test_pips_failures_are_one_sentence(stderr: str, sentence: str, why: str) -> None:
    assert sentence in models._reason(stderr), why


@pytest.fixture(scope="module")
def default_model() -> Path:
    """The real default model, made from a download of 93 MB if it is missing."""
    return made_default_model()


TOKENS = [  # text, its tokens, why this row exists
    ("\n\n1", ["\n\n", "1"], "each digit is one token, line breaks before it are one token"),
    ("x =  12", ["x", " =", "  ", "1", "2"], "blanks before a number are one token"),
    ("Answer: Correct", ["Answer", ":", " Correct"], "a verdict is one token"),
    ("Answer: Wrong", ["Answer", ":", " Wrong"], "the other verdict too"),
    ("<|im_end|>\n", ["<|im_end|>", "\n"], "special tokens are recognised in text"),
]


@pytest.mark.parametrize(("text", "tokens", "why"), TOKENS)
def test_the_default_models_tokens(default_model: Path, text: str, tokens: list[str], why: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([index]) for index in ids] == tokens, why
    assert tokenizer.decode(ids) == text


def test_the_default_model_answers_and_ends_its_turn(default_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    model = AutoModelForCausalLM.from_pretrained(default_model)
    assert (model.dtype, model.generation_config.eos_token_id) == (torch.float32, tokenizer.convert_tokens_to_ids(EOS))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    reply = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(reply) == f"The capital of France is Paris.{EOS}"


def test_deployments_share_the_default_model_unless_one_has_its_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache")
    assert settings.default_model == tmp_path / "cache" / "models" / DEFAULT_MODEL
    own = _write_model(tmp_path / "home" / "models" / DEFAULT_MODEL, "config.json")
    assert settings.default_model == own, "an earlier release made it there"

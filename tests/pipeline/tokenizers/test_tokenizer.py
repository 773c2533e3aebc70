"""The tokenizer: loading, identity by content, storing byte for byte, and refusals."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from kdpipe.pipeline.tokenizers import tokenizer as module
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import sha256_hex
from support.corpora import CHATML, END, TURN_END, UNSTABLE, small_tokenizer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load_tokenizer(str(small_tokenizer(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return load_tokenizer(str(small_tokenizer(tmp_path_factory.mktemp("chat"), chat_template=CHATML)))


def test_files_are_stored_byte_for_byte(chat: LoadedTokenizer) -> None:
    folder = Path(chat.name)
    assert sorted(chat.files) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name, record in chat.record.files.items():
        data = (folder / name).read_bytes()
        assert (chat.files[name], record.bytes, record.sha256) == (data, len(data), sha256_hex(data))


def test_further_templates_and_models_are_stored_too(tmp_path: Path) -> None:
    small_tokenizer(tmp_path, chat_template=CHATML)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text(UNSTABLE, encoding="utf-8")
    (tmp_path / "words.model").write_bytes(b"model")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    loaded = load_tokenizer(str(tmp_path), chat_template="tools")
    assert {"additional_chat_templates/tools.jinja", "words.model"} < set(loaded.files)
    assert "weights.safetensors" not in loaded.files
    assert loaded.template == UNSTABLE


def test_a_file_with_an_unsupported_name_is_refused(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    (tmp_path / "my words.model").write_bytes(b"model")
    with pytest.raises(ConfigError, match=r"'my words\.model'") as caught:
        load_tokenizer(str(tmp_path))
    assert "rename it" in str(caught.value.hint)


def test_the_fingerprint_depends_on_ids_of_text_only(plain: LoadedTokenizer, tmp_path: Path) -> None:
    copy = small_tokenizer(tmp_path / "copy")
    state = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    again = load_tokenizer(str(copy))
    assert again.record.fingerprint == plain.record.fingerprint
    assert len(again.encode(["A text of more than four tokens."], True)[0].ids) > 4
    for other in (small_tokenizer(tmp_path / "b", 400), small_tokenizer(tmp_path / "c", eos_token=TURN_END)):
        assert load_tokenizer(str(other)).record.fingerprint != plain.record.fingerprint


def test_the_vocabulary_ends_at_its_highest_id(plain: LoadedTokenizer, tmp_path: Path) -> None:
    assert plain.record.vocabulary_size == 512
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).record.vocabulary_size == 8


def test_the_selected_template_is_in_the_record(chat: LoadedTokenizer, plain: LoadedTokenizer, tmp_path: Path) -> None:
    assert (chat.template, chat.record.chat_template_sha256) == (CHATML, sha256_hex(CHATML.encode()))
    assert (plain.template, plain.record.chat_template_sha256) == (None, None)
    assert load_tokenizer(chat.name, chat_template="none").record.chat_template_sha256 is None
    own = tmp_path / "own.jinja"
    own.write_text(UNSTABLE, encoding="utf-8")
    assert load_tokenizer(plain.name, chat_template=str(own)).template == UNSTABLE


def test_a_missing_template_is_reported(plain: LoadedTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the chat template gone\.jinja cannot be read") as caught:
        load_tokenizer(plain.name, chat_template="gone.jinja")
    assert '"none" for no template' in str(caught.value.hint)


def test_an_unknown_template_name_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    small_tokenizer(tmp_path, chat_template=CHATML)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text(UNSTABLE, encoding="utf-8")
    with pytest.raises(ConfigError, match="default, tools"):
        load_tokenizer(str(tmp_path), chat_template="tool")


def test_stop_and_turn_ends_are_special_tokens(chat: LoadedTokenizer, plain: LoadedTokenizer) -> None:
    assert chat.stop is not None
    assert chat.token_text(chat.stop) == TURN_END
    assert plain.stop in plain.turn_ends
    assert chat.template_values == {"eos_token": TURN_END, "pad_token": END}


def test_a_tokenizer_without_special_tokens_has_no_stop(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.stop, loaded.turn_ends) == (None, frozenset())


def words(loaded: LoadedTokenizer) -> set[str]:
    return {loaded.token_text(i) for i in range(loaded.record.vocabulary_size) if loaded.starts_word[i]}


def test_words_begin_at_white_space_and_at_special_tokens(plain: LoadedTokenizer) -> None:
    begins = words(plain)
    assert {"Ġ", "Ġthe", "Ċ", END, TURN_END} < begins
    assert not begins & {"a", "the", "Ã", "."}


def test_words_begin_without_the_mark_of_a_word_piece(tmp_path: Path) -> None:
    vocabulary = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "go", "##ing"))}
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path)
    begins = words(load_tokenizer(str(tmp_path)))
    assert {"a", "go", "[SEP]"} <= begins
    assert "##ing" not in begins


def test_words_begin_with_the_mark_of_a_sentence_piece(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁go", -2.0), ("ing", -3.0), ("a", -4.0)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    begins = words(load_tokenizer(str(tmp_path)))
    assert {"▁", "▁go", "<unk>"} <= begins
    assert not begins & {"ing", "a"}


def test_a_folder_without_a_tokenizer_is_reported_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    named = "expected tokenizer.json, found config.json, model.safetensors"
    with pytest.raises(ConfigError, match=named) as caught:
        load_tokenizer(str(tmp_path))
    assert "--tokenizer" in str(caught.value.hint)


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is neither a folder nor a Hub id"):
        load_tokenizer(name)


def test_an_incomplete_tokenizer_is_reported(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert "incomplete" in str(caught.value.hint)


def test_remote_code_of_a_tokenizer_needs_permission(tmp_path: Path) -> None:
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert "teacher.trust_remote_code" in str(caught.value.hint)


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tokenizer(tmp_path)
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda *_, **__: object())
    with pytest.raises(ConfigError, match="has no fast version"):
        load_tokenizer(str(tmp_path))


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has 0 ids"):
        load_tokenizer(str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub that is all in its local cache, with two revisions."""
    for revision, vocabulary in (("a" * 40, 512), ("b" * 40, 400)):
        folder = small_tokenizer(tmp_path / "models--some--one" / "snapshots" / revision, vocabulary, CHATML)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text(UNSTABLE, encoding="utf-8")
        refs = tmp_path / "models--some--one" / "refs"
        refs.mkdir(exist_ok=True)
        (refs / ("main" if vocabulary == 512 else "old")).write_text(revision, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "some/one"


def test_a_tokenizer_of_the_hub_is_the_one_of_its_revision(hub: str) -> None:
    now, old = load_tokenizer(hub), load_tokenizer(hub, revision="old")
    assert (now.record.vocabulary_size, old.record.vocabulary_size) == (512, 400)
    own = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(now.files) == ["additional_chat_templates/tools.jinja", *own]


def test_an_unknown_hub_name_is_reported(hub: str) -> None:
    with pytest.raises(ConfigError, match="the tokenizer some/other cannot be loaded") as caught:
        load_tokenizer("some/other")
    assert "check the name, the network" in str(caught.value.hint)

"""Model cards: front matter that YAML reads, licenses that ask something of students."""

from dataclasses import replace

import pytest
import yaml

from kdpipe.pipeline.models.folders import license_of
from kdpipe.pipeline.students.model_card import UNKNOWN, ModelCard, of_merged, rendered, terms_of
from support.students import CARD


def front(card: ModelCard) -> dict[str, object]:
    opening, text, _ = rendered(card).split("---\n", 2)
    assert opening == ""
    found: dict[str, object] = yaml.safe_load(text)
    return found


def test_the_front_matter_is_what_the_hub_reads() -> None:
    found = front(CARD)
    assert found["license"] == "mit"
    assert (found["base_model"], found["base_model_relation"]) == ("org/small", "finetune")
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert found["tags"] == ["knowledge-distillation", "kdpipe"]
    reported = found["distillation"]
    assert isinstance(reported, dict)
    assert reported["cache_id"] == "f" * 64 and reported["losses"] == {"ce": 0.1, "forward_kl": 0.9}
    assert license_of(rendered(CARD)) == '"mit"'.strip('"')


def test_the_card_names_the_origin_of_the_student() -> None:
    text = rendered(CARD)
    assert "org/small, distilled with kdpipe from cached predictions of org/Big (abc123)." in text
    assert "| losses | 0.1 x ce, 0.9 x forward_kl |" in text
    assert "| positions | 1,234,567 |" in text
    assert "| cross_entropy | 2.346 |" in text
    assert "License of the teacher: apache-2.0." in text
    assert "**" not in text


def test_a_fresh_student_has_no_base_and_takes_the_teachers_license() -> None:
    found = front(replace(CARD, base=None, base_license=None))
    assert "base_model" not in found and "base_model_relation" not in found
    assert found["license"] == "apache-2.0"
    assert "A randomly initialized model, distilled with kdpipe" in rendered(replace(CARD, base=None))


def test_a_base_in_a_folder_is_called_by_its_name_alone() -> None:
    card = replace(CARD, base="/home/someone/models/small one")
    assert "base_model" not in front(card) and "base_model_relation" not in front(card)
    text = rendered(card)
    assert "\nsmall one, distilled with kdpipe" in text
    assert "someone" not in text


def test_what_yaml_would_read_otherwise_is_quoted() -> None:
    reported = front(replace(CARD, teacher="a: b # c"))["distillation"]
    assert isinstance(reported, dict) and reported["teacher"] == "a: b # c"


def test_a_run_without_a_teacher_is_described_as_such() -> None:
    bare = replace(CARD, teacher=None, teacher_revision=None, teacher_license=None, cache_id=None, metrics={})
    text = rendered(bare)
    assert "trained with kdpipe on labels only." in text
    assert "| cache | unfinished |" in text
    assert "License" not in text and "metric" not in text


@pytest.mark.parametrize(
    ("license", "words"),
    [
        ("llama3.1", "names that begin with Llama"),
        ("llama3.3", "names that begin with Llama"),
        ("llama4", "names that begin with Llama"),
        ("llama2", "do not allow their outputs"),
        ("llama3", "do not allow their outputs"),
        ("gemma", "treat models trained on Gemma's outputs"),
        ("cc-by-nc-4.0", "does not allow commercial use"),
        ("cc-by-nc-sa-4.0", "does not allow commercial use"),
        ("other: qwen-research", "does not allow commercial use"),
        ("other: tongyi-qianwen", "a custom license"),
        (None, UNKNOWN),
    ],
)
def test_the_terms_of_a_license_are_in_bold(license: str | None, words: str) -> None:
    assert words in str(terms_of(license))
    assert f"**{terms_of(license)}**" in rendered(replace(CARD, teacher_license=license))


@pytest.mark.parametrize("license", ["apache-2.0", "mit", "bsd-3-clause", "openrail", "cc-by-4.0"])
def test_plain_licenses_ask_nothing(license: str) -> None:
    assert terms_of(license) is None


def test_a_license_that_is_no_word_becomes_other() -> None:
    assert front(replace(CARD, base_license="other: some name"))["license"] == "other"


def test_the_card_of_an_adapter_becomes_that_of_a_model() -> None:
    card = replace(CARD, is_adapter=True)
    assert (front(card)["library_name"], front(card)["base_model_relation"]) == ("peft", "adapter")
    text = of_merged(rendered(card))
    assert "A merged adapter of org/small, " in text
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    assert (found["library_name"], found["base_model_relation"]) == ("transformers", "finetune")
    assert of_merged("# mine\n") == "# mine\n"

"""States that are not one vector of one width a token: another width behind the last layer, several streams, lists."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kdpipe.cache.format.blocks import cut
from kdpipe.pipeline.targets.hidden_states import hidden_spec
from kdpipe.pipeline.teachers.transformers_backend import teacher_shape
from kdpipe.schemas.capture_settings import HiddenSettings, TeacherSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.target_kinds import State, TopK
from support.family_checks import N_IDS, check_teacher, make_model
from support.family_configs import small_config
from support.students import IDS, batch_of, student
from support.teachers import local_teacher, request_for, segments_of

# float32 on both sides, in batches of other shapes.
CLOSE = 1e-4
LAYERS = HiddenSettings(layers=("1", "2"), dim=16)


def plain_states(folder: Path, tokens: Any, layer: int) -> Any:
    """States of a layer of one document as transformers gives them."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids_BT = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    with torch.no_grad():
        return model(ids_BT, use_cache=False, output_hidden_states=True).hidden_states[layer]


def test_a_teacher_with_last_states_of_another_width_gives_all_targets(tmp_path: Path) -> None:
    """As OPT-350m, which projects its last states before the head."""
    make_model(
        transformers.CONFIG_MAPPING["opt"](**small_config("opt").to_dict() | {"word_embed_proj_dim": 48}), tmp_path
    )
    shape = teacher_shape(TeacherSettings(name=str(tmp_path)))
    assert shape.widths == (64, 64, 48)
    spec = hidden_spec(LAYERS, shape.widths, 0)
    assert [vector.width for vector in spec.pooled] == [64, 48]
    teacher, segments = local_teacher(tmp_path, N_IDS), segments_of((9, 14), N_IDS)
    (result,) = teacher.predict([segments], request_for(TopK(k=2), N_IDS, spec))
    for number, segment in enumerate(segments):
        states = plain_states(tmp_path, segment.tokens, 1)[0].numpy()
        np.testing.assert_allclose(result.pooled[1][number], states.mean(axis=0), atol=CLOSE)
        assert result.pooled[2].shape == (2, 48) and result.block.hidden[2].shape == (23, 16)
    assert teacher.output_head is not None and teacher.output_head.width == 48
    (result,) = teacher.predict([segments], request_for(State(width=48), N_IDS))
    assert result.block.state is not None and result.block.state.shape == (23, 48)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dim"), [("gemma3n_text", 0), ("deepseek_v4", 2)])
@pytest.mark.parametrize("n_pieces", [1, 4])
def test_a_layer_of_several_streams_gives_their_mean(family: str, dim: int, n_pieces: int, tmp_path: Path) -> None:
    """Also in batches as large as there are streams, of documents as long, where the shape alone would not tell."""
    make_model(small_config(family), tmp_path)
    spec = hidden_spec(HiddenSettings(layers=("1",), dim=64), (64,) * (small_config(family).num_hidden_layers + 1), 0)
    teacher, segments = local_teacher(tmp_path, N_IDS), segments_of((4,) * n_pieces, N_IDS)
    (result,) = teacher.predict([segments], request_for(TopK(k=2), N_IDS, spec))
    for segment, block in zip(segments, cut(result.block, np.cumsum([4] * n_pieces)), strict=True):
        states = plain_states(tmp_path, segment.tokens, 1)
        assert states.dim() == 4
        np.testing.assert_allclose(block.hidden[1], states.mean(dim=dim)[0].numpy(), atol=CLOSE)


@pytest.mark.parametrize("family", ["gemma3n_text", "deepseek_v4", "openai-gpt"])
def test_a_student_of_such_layers_gives_states_of_one_vector_a_token(family: str, tmp_path: Path) -> None:
    make_model(small_config(family), tmp_path)
    found = student(tmp_path, IDS)
    batch = batch_of([[9, 5], [12]])
    layers = found.states(batch, layers=(0, 1)).layers
    assert {number: tuple(states.shape) for number, states in layers.items()} == dict.fromkeys((0, 1), (2, 14, 64))
    layers[1].square().sum().backward()


def test_a_body_under_the_usual_name_is_found_where_the_family_states_another(tmp_path: Path) -> None:
    make_model(small_config("llama4_text"), tmp_path)
    assert local_teacher(tmp_path, N_IDS).forward.head is not None


def test_a_model_that_looks_ahead_is_refused_though_it_hides_as_many_tokens_as_it_takes_for_padding(
    tmp_path: Path,
) -> None:
    make_model(small_config("xlm"), tmp_path)
    with pytest.raises(ConfigError, match="is not a causal language model"):
        local_teacher(tmp_path, N_IDS)


def test_a_head_that_brings_states_to_the_width_of_the_embeddings_is_left_to_the_model(tmp_path: Path) -> None:
    make_model(small_config("electra"), tmp_path)
    assert teacher_shape(TeacherSettings(name=str(tmp_path))).widths == (64, 64, 64)
    assert local_teacher(tmp_path, N_IDS).forward.head is None
    assert check_teacher(tmp_path) < CLOSE

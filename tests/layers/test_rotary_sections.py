"""Positions are the model's own: three rows of them (time, height, width), each turning a section of a head's frequencies.

Legend: T tokens, C context, D head_dim, F = D/2 frequencies, V vocabulary.
"""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from actorllm.layers.batch import Batch
from actorllm.layers.rotary import Rotary
from actorllm.models.contract import CacheBuffer, CacheGroup
from actorllm.testing.tiny import logits_in_chunks
from tests.table_model import AttendingLayer, TableLM

VOCAB_SIZE, DIM, SECTIONS = 30, 16, (2, 3, 3)
TABLE_VD = torch.randn(VOCAB_SIZE, DIM, generator=torch.Generator().manual_seed(3))
GRID = [(4, 4 + row, 4 + column) for row in range(2) for column in range(3)]
PLACES_3C = torch.tensor([(i, i, i) for i in range(4)] + GRID + [(i, i, i) for i in range(7, 40)]).T
"""Four tokens of text, an image of 2 x 3 patches, and text that goes on behind the image's largest position."""


class GridLM(TableLM):
    cache_groups = (CacheGroup("full", (0,), (CacheBuffer("k", (1, DIM)), CacheBuffer("v", (1, DIM)))),)

    def __init__(self) -> None:
        super().__init__(TABLE_VD, AttendingLayer(DIM), context_len=PLACES_3C.shape[1])
        self.rotary = Rotary(DIM, theta=100.0, sections=SECTIONS)

    def prepare(self, batch: Batch) -> object:
        return self.rotary.tables(PLACES_3C[:, batch.positions_T], torch.float32)


def published(places_3T: Tensor) -> tuple[Tensor, Tensor]:
    """[T, D] cosines and sines of Qwen2-VL."""
    config = Qwen2VLTextConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": list(SECTIONS)},
    )
    cos, sin = Qwen2VLRotaryEmbedding(config)(torch.zeros(1), places_3T.unsqueeze(1))
    return cos[0], sin[0]


def one_shot(ids: list[int]) -> Tensor:
    """[T, V] logits without a cache, by the published angles."""
    x_TD = TABLE_VD[ids]
    cos_TD, sin_TD = published(PLACES_3C[:, : len(ids)])
    half = DIM // 2
    turned_TD = x_TD * cos_TD + torch.cat((-x_TD[:, half:], x_TD[:, :half]), dim=-1) * sin_TD
    scores_TT = (turned_TD @ turned_TD.T * DIM**-0.5).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
    return (x_TD + scores_TT.softmax(-1) @ x_TD) @ TABLE_VD.T


def test_sections_are_qwen2_vls() -> None:
    places_3T = torch.randint(0, 500, (3, 20), generator=torch.Generator().manual_seed(1))
    tables = Rotary(DIM, theta=100.0, sections=SECTIONS).tables(places_3T, torch.float32)
    cos_TD, sin_TD = published(places_3T)
    torch.testing.assert_close(tables.cos_T1R.squeeze(1), cos_TD)
    torch.testing.assert_close(tables.sin_T1R.squeeze(1), sin_TD)


def test_equal_rows_are_plain_positions() -> None:
    positions_T = torch.arange(9)
    sectioned = Rotary(DIM, sections=SECTIONS).tables(positions_T.expand(3, -1), torch.float32)
    torch.testing.assert_close(sectioned.cos_T1R, Rotary(DIM).tables(positions_T, torch.float32).cos_T1R, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", [(), (5,), (3, 4, 1, 1)])
def test_a_model_gives_its_tokens_three_positions(sizes: tuple[int, ...]) -> None:
    ids = torch.randint(VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(logits_in_chunks(GridLM(), ids, sizes=sizes), one_shot(ids), atol=1e-4, rtol=1e-4)


def test_sections_must_cover_the_frequencies() -> None:
    with pytest.raises(AssertionError, match="sections"):
        Rotary(DIM, sections=(2, 2, 2))

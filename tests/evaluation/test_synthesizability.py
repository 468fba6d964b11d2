"""Likelihoods of the labels."""

import numpy as np
import pytest
from small_language_models import manual_scores, mos2, tiny_llama, tiny_tokenizer

from evaluation import material_strings
from evaluation import synthesizability as synth


@pytest.mark.parametrize("split_labels", [False, True])
def test_label_likelihood_is_the_sum_over_its_tokens(split_labels):
    tokenizer = tiny_tokenizer(split_labels)
    model = tiny_llama(tokenizer)
    text = material_strings.material_string(mos2()).text
    assert len(tokenizer(" True")["input_ids"]) == (2 if split_labels else 1)
    encode = lambda string: list(tokenizer(string)["input_ids"])  # noqa: E731
    np.testing.assert_allclose(synth.label_log_likelihoods(model, encode, text), manual_scores(model, tokenizer, text), atol=1e-5)
    with_end = lambda string: [*encode(string), 2]  # noqa: E731
    np.testing.assert_allclose(
        synth.label_log_likelihoods(model, with_end, text, end_id=2), synth.label_log_likelihoods(model, encode, text), atol=1e-6
    )

"""The weights of a run on disk."""

from __future__ import annotations

import numpy as np
from helpers.models import make_language_model

from noisin.runs.weights import pack, set_parameters, unpack


def test_a_weight_that_is_shared_is_there_once_and_a_file_that_has_it_twice_is_read(tmp_path):
    model, other = (make_language_model(7, decoder="tied", hidden=5, embedding=5) for _ in range(2))
    arrays = unpack(pack(model))
    assert "weight:embedding_weight" in arrays and "weight:decoder_weight" not in arrays
    assert sum(values.size for values in arrays.values()) == sum(p.data().size for p in model.collect_params().values())
    for stored in (arrays, {**arrays, "weight:decoder_weight": arrays["weight:embedding_weight"]}):
        for parameter in other.collect_params().values():
            parameter.set_data(0 * parameter.data())
        set_parameters(other, stored, tmp_path)
        for name, values in unpack(pack(other)).items():
            np.testing.assert_array_equal(values, arrays[name])

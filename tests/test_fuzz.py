"""A small part of `benchmarks/fuzz_readers.py`: damaged input is read or refused, and nothing else happens."""

import logging
import warnings
from collections import Counter

import pytest
from fuzzing import KINDS, read_damaged

NUMBER = {"model": 60, "config": 150, "events": 60, "event_file": 40, "cache": 60}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_read_or_refused(tmp_path, kind, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.CRITICAL):
        warnings.simplefilter("ignore")
        found = Counter(read_damaged(kind, number, tmp_path) for number in range(NUMBER[kind]))
    assert found["refused"] > NUMBER[kind] / 4, found

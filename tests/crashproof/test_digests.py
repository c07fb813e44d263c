from __future__ import annotations

import pytest

from crashproof.digests import BLAKE3, SHA256, RunningDigest, algorithm_of, hexadecimal_of, is_known, named

# Of "abc": the example of FIPS 180-2, and what `b3sum` prints.
OF_ABC = {
    SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    BLAKE3: "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}


@pytest.mark.parametrize("algorithm", OF_ABC)
def test_a_digest_names_its_algorithm_and_is_that_of_all_pieces(algorithm: str) -> None:
    digest = RunningDigest(algorithm)
    digest.update(b"a")
    digest.update(memoryview(b"bc"))

    assert named(algorithm, OF_ABC[algorithm]) == digest.result()
    assert (algorithm, OF_ABC[algorithm]) == (algorithm_of(digest.result()), hexadecimal_of(digest.result()))


def test_an_algorithm_of_a_later_version_is_unknown() -> None:
    assert [True, True, False, False] == [is_known(each) for each in (BLAKE3, SHA256, "blake4", "")]

from __future__ import annotations

import socket

from crashproof.hosts import host_name


def test_a_machine_has_the_name_that_other_programs_give_it() -> None:
    assert socket.gethostname() == host_name()

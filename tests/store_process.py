"""A process that uses a shared store: `python store_process.py URL ACCOUNT LEASE_SECONDS WHAT …`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from decimal import Decimal

from response_stores import CENT, answered, granted, intent

from crashproof.answers.store import Granted
from crashproof.teacher.shared_store.store import SharedStore


def race(store: SharedStore, num_questions: str, budget: str) -> None:
    """Ask questions in a random order, and print which were sent."""
    questions = list(range(int(num_questions)))
    random.Random(os.getpid()).shuffle(questions)
    sys.stdin.readline()
    sent = []
    for start in range(0, len(questions), 4):
        asked = questions[start : start + 4]
        verdicts = store.begin([intent(question) for question in asked], budget=Decimal(budget))
        requests = [verdict for verdict in verdicts if isinstance(verdict, Granted)]
        store.finish([answered(request, CENT) for request in requests])
        sent += [question for question, verdict in zip(asked, verdicts, strict=True) if isinstance(verdict, Granted)]
    print(json.dumps(sent))


def die(store: SharedStore, question: str) -> None:
    """Begin a request, then get killed."""
    granted(store, question)
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(store: SharedStore, question: str) -> None:
    """Begin a request, stop until continued, then store the answer."""
    request = granted(store, question)
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    store.finish([answered(request, CENT, response={"text": "late"})])
    print("kept", flush=True)


def fork(store: SharedStore) -> None:
    """Use the store in a forked child."""
    granted(store, "a")
    child = os.fork()
    if child == 0:
        try:
            store.spending()
        except Exception as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    print(store.spending().reserved, flush=True)


if __name__ == "__main__":
    url, account, lease_seconds, what, *words = sys.argv[1:]
    with SharedStore.open(url, account=account, lease_seconds=float(lease_seconds)) as opened:
        {"race": race, "die": die, "freeze": freeze, "fork": fork}[what](opened, *words)

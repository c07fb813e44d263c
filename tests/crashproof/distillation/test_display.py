import io

from crashproof.distillation.display import show_progress


def test_without_a_terminal_the_first_step_and_the_last_are_lines() -> None:
    stream = io.StringIO()

    with show_progress("kd", total_steps=3000, stream=stream) as shown:
        for step in (1, 2, 3000):
            shown.advance(step, loss=lambda: 2.5, remaining=lambda: 3661.0)

    first, last = stream.getvalue().splitlines()
    assert first.startswith("kd: step 1 of 3,000  loss 2.5000  ")
    assert last.startswith("kd: step 3,000 of 3,000  loss 2.5000  ")
    assert last.endswith(" steps/s  1:01:01 left")


def test_work_without_a_loss_is_counted_in_its_own_unit() -> None:
    stream = io.StringIO()

    with show_progress("capture", total_steps=8, first_step=4, unit="sample", stream=stream) as shown:
        shown.advance(8)

    assert stream.getvalue().startswith("capture: sample 8 of 8  ")
    assert stream.getvalue().endswith(" samples/s\n")

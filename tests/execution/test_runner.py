"""Steps through a resident runner, with the echo model: it fails a row whose slots are not its own."""

import msgspec

from actorllm.messages import unpack, unpack_floats


def sampled(done) -> list[int]:
    return list(unpack(done.sampled))


def test_prompts_and_decoding_rows_share_a_step(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    assert sampled(runner.run(steps.open(0).feed(0, [3, 4, 5], to=[0]).step())) == [6]
    done = runner.run(steps.open(5).decode(0).feed(5, [20, 9], to=[5]).step())
    assert sampled(done) == [7, 10]
    assert (done.epoch, done.number) == (1, 2)
    assert sampled(runner.run(steps.decode(5, 0).step())) == [11, 8]


def test_a_chunk_of_a_prompt_samples_nothing(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    assert sampled(runner.run(steps.open(1).feed(1, [3, 4]).step())) == []
    assert sampled(runner.run(steps.feed(1, [8, 9], to=[1]).step())) == [10]


def test_choices_fan_out_from_one_prompt(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    steps.open(0).feed(0, [3, 4, 5], to=[0, 1, 2])
    steps.open(1, like=0).open(2, like=0)
    steps.outputs.update({1: 1, 2: 1})
    assert sampled(runner.run(steps.step())) == [6, 6, 6]
    assert sampled(runner.run(steps.decode(0, 1, 2).step())) == [7, 7, 7]


def test_a_row_is_taken_again_after_its_sequence_ended(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    runner.run(steps.open(0, temperature=1.0, top_k=1).feed(0, [3, 4, 5], to=[0]).step())
    assert sampled(runner.run(steps.close(0).open(0).feed(0, [8], to=[0]).step())) == [9]


def test_wrong_slots_fail_the_row_and_no_other(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    runner.run(steps.open(0).open(1).feed(0, [3, 4, 5], to=[0]).feed(1, [3, 4], to=[1]).step())
    good = steps.decode(0, 1).step()
    steps.slots[0][2] = steps.slots[0][0]
    spoiled = steps.open(0, like=0).step().opened
    good = msgspec.structs.replace(good, opened=spoiled)
    assert sampled(runner.run(good)) == [-1, 6]


def test_reset_forgets_rows(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    first = steps.open(0, logit_bias={7: 100.0}).feed(0, [3], to=[0]).step()
    assert sampled(runner.run(first)) == [7]
    runner.reset()
    assert sampled(runner.run(new_steps(epoch=2).open(0).feed(0, [3], to=[0]).step())) == [4]


def test_logprobs_come_for_the_rows_that_ask(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    steps.open(0).open(1, logprobs=2).open(2, logprobs=0)
    done = runner.run(steps.feed(0, [1], to=[0]).feed(1, [2], to=[1]).feed(2, [3], to=[2]).step())
    nothing, two, own = done.logprobs
    assert nothing is None
    assert two.width == 2
    assert unpack(two.ids)[0] == 3
    assert unpack_floats(two.chosen)[0] == unpack_floats(two.values)[0]
    assert (own.width, own.ids, len(own.chosen)) == (0, b"", 4)


def test_prompt_logprobs_accumulate_over_chunks(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    first = runner.run(steps.open(0).feed(0, [3, 4, 9], prompt=(1, [4, 9, 10])).step())
    last = runner.run(steps.feed(0, [10, 11], to=[0], prompt=(1, [11, -1])).step())
    (before,), (after,) = first.prompt_logprobs, last.prompt_logprobs
    likely = [value > -1.0 for value in (*unpack_floats(before.chosen), *unpack_floats(after.chosen))]
    assert likely == [True, False, True, True], "token 9 does not follow token 4"
    assert [*unpack(before.ids), *unpack(after.ids)] == [4, 5, 10, 11]


def test_a_last_chunk_of_one_token_has_no_prompt_logprobs_left(new_echo, new_steps) -> None:
    runner, steps = new_echo(), new_steps()
    done = runner.run(steps.open(0).feed(0, [3], to=[0], prompt=(2, [-1])).step())
    assert done.prompt_logprobs[0].chosen == b""

"""The record of a run: cut back to the checkpoint, a torn last line dropped, nothing written twice."""

import json

from gpt_jax.training.metrics_log import JsonLines, MetricsLog, read_rows
from gpt_jax.training.report import write_report


def test_rows_after_the_checkpoint_and_a_torn_line_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "split": "valid"}\n{"step": 3}\n{"step": 4, "lo')
    log = JsonLines(path, resume_step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1}, {"step": 2}, {"step": 2, "split": "valid"}, {"step": 3, "again": True},
    ]  # fmt: skip


def test_floats_come_back_with_every_bit(tmp_path):
    values = [1 / 3, 8.317152976989746, 1e-45, 3.4e38]
    log = JsonLines(tmp_path / "m.jsonl", resume_step=0)
    for value in values:
        log.write({"step": 1, "loss": value})
    log.close()
    assert [row["loss"].hex() for row in read_rows(tmp_path / "m.jsonl")] == [value.hex() for value in values]


def test_only_the_first_process_writes(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0, main_process=False, tensorboard=True)
    log.write({"step": 1, "split": "train", "loss": 1.0})
    log.write_sample({"step": 1, "prompt": "a", "continuation": "b"})
    log.flush()
    log.close()
    assert not any(tmp_path.iterdir())


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format's writer: its reader is below)

    log = MetricsLog(tmp_path, resume_step=0, main_process=True, tensorboard=True)
    log.write({"step": 7, "split": "train", "loss": 2.5, "mfu": None})
    log.close()
    data = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    tags, place = {}, 0
    while place < len(data):  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(data[place : place + 8], "little")
        event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
        tags |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        place += 16 + length
    assert tags == {"train/loss": (7, 2.5)}


def test_a_report_shows_samples_as_they_are(tmp_path):
    rows = [{"step": 1, "split": "valid", "loss": 2.0, "bits_per_byte": 1.0}]
    samples = [{"step": 1, "prompt": "# *not* a heading", "continuation": "\n<b>nor bold</b>"}]
    path = write_report(
        tmp_path, title="T", summary=[("a", "b")], rows=rows, samples=samples, config={}, environment={}
    )
    text = path.read_text()
    assert "> \\# \\*not\\* a heading **⟶** " in text and "\\<b\\>nor bold" in text
    assert (tmp_path / "loss.png").stat().st_size > 1000

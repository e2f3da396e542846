"""What happens between the steps of a stage: log lines, dev evaluations, checks of the numbers, checkpoints."""

import logging
from collections.abc import Mapping

from distill.corpus.batches import MicroBatch
from distill.errors import describe_os_error
from distill.recipe import TEACHER
from distill.training.accounting import Throughput
from distill.training.bad_batches import write_bad_batch
from distill.training.checkpoint import save_checkpoint
from distill.training.evaluate import evaluate_masked_lm
from distill.training.gradients import balance_factors, describe_norms, term_gradient_norms
from distill.training.loop import StageStopped, StepReport, Teacher, TeacherPass, TrainingFailed
from distill.training.metrics import MetricsLog
from distill.training.processes import Processes, numbers_from_first, share_from_first
from distill.training.signals import StopRequest
from distill.training.stage_setting import StageSetting
from distill.training.step_log import SpikeWatch
from distill.training.student import StudentRun
from distill.training.trackers import open_trackers

logger = logging.getLogger(__name__)

_LOST_SCALE = 1e-4
"""GradScaler starts at 65,536 and halves after an overflow: this small it is after 30 in a row."""


class Bookkeeper:
    """Looks after a stage between its steps. Only the first process writes."""

    def __init__(
        self,
        setting: StageSetting,
        runs: list[StudentRun],
        *,
        first_step: int,
        stop: StopRequest,
        throughput: Throughput,
    ) -> None:
        """
        Args:
            first_step: steps that were done before this run.
        """
        self.setting, self.runs, self.first_step = setting, runs, first_step
        self.stop, self.throughput = stop, throughput
        self.stage, self.steps, self.folder = setting.stage, setting.steps, setting.paths.stage
        self.processes, self.status = setting.processes, setting.status
        self.dev = setting.dev(self.processes)
        self._probe: tuple[Teacher | None, MicroBatch] | None = None
        tenth = -(-self.steps // 10)
        self.save_every, self.eval_every = self.stage.save_every or tenth, self.stage.eval_every or tenth
        names = [run.name for run in runs] + ([TEACHER] if first_step == 0 else [])
        self.log = None
        if self.processes.is_first:
            trackers = open_trackers(self.stage, self.folder, self._warn)
            self.log = MetricsLog(self.folder, students=names, step=first_step, trackers=trackers)
        self.spikes = {run.name: SpikeWatch() for run in runs}
        self.saved_step = first_step or -1
        self.shown: dict[str, float] = {}

    def measure_teacher(self, teacher: TeacherPass, dev: list[MicroBatch] | None, processes: Processes) -> None:
        """Measures the teacher before the first step, as the mark to reach.

        Args:
            dev: the part of the dev batches that this process measures, among `processes`.
        """
        if dev is not None and self.first_step == 0:
            values = evaluate_masked_lm(teacher.model, dev, processes, teacher.autocast, self.stop)
            self._write_dev(TEACHER, StepReport(0, 0, None), values)

    def watch_gradients(self, teacher: Teacher | None, batch: MicroBatch) -> None:
        """From now on the terms' gradients are measured on this micro-batch, now and then."""
        self._probe = teacher, batch
        if self.first_step == 0:
            self._balance(0)

    def before(self, report: StepReport) -> None:
        """Measures what a stop kept from being measured."""
        self.logged_tokens = report.tokens
        if self.first_step and self._is_dev_step(self.first_step):
            for run in self.runs:
                missing = self.log is not None and not self.log.has_dev(self.first_step, run.name)
                if share_from_first(int(missing), self.processes):
                    self._evaluate(run, report)

    def after(self, report: StepReport) -> None:
        """Checks, logs, evaluates and saves where the stage asks for it at this step.

        Raises:
            StageStopped: in the middle of an evaluation.
            TrainingFailed: see `save`, and `_check_numbers`.
        """
        is_last = report.step == self.steps
        is_saving = report.step % self.save_every == 0 or is_last
        if report.values is not None or is_saving or self.processes.device.type != "cuda":
            self._check_numbers(report.step)  # the host waits for the device, which costs nothing on a CPU
        self._log_losses(report)
        is_dev_step = self._is_dev_step(report.step)
        if is_dev_step:
            self._measure_gradients(report)
        self._balance(report.step)  # before the evaluation, in which a stop may end the step
        if is_dev_step:
            for run in self.runs:
                self._evaluate(run, report)
        if is_saving:
            self.save(report, is_needed=is_last)
        if self.processes.is_first:
            first = report.step == self.first_step + 1
            self.status.write("running", force=first, step=report.step, steps=self.steps, **self.shown)

    def save(self, report: StepReport, *, is_needed: bool) -> None:
        """Writes a checkpoint; all processes wait for it. A disk that takes none ends the run only if `is_needed`.

        Raises:
            TrainingFailed: a checkpoint that is needed cannot be written, or weights are no numbers, from which no run
                could go on. Only the first process's has a message.
        """
        if report.step == self.saved_step:
            return
        self._check_numbers(report.step)
        for run in self.runs:
            if not run.is_finite():
                raise TrainingFailed(
                    f"student '{run.name}': weights are not finite after step {report.step:,}; lower learning_rate, "
                    f"or use precision fp32; the last checkpoint is from before"
                )
        problem = self._write_checkpoint(report) if self.processes.is_first else ""
        if not share_from_first(int(bool(problem)), self.processes):
            self.saved_step = report.step
            return
        since = f"from step {self.saved_step:,}" if self.saved_step > 0 else "from the start"
        message = f"the checkpoint of step {report.step:,} cannot be written ({problem})"
        if is_needed:
            raise TrainingFailed(
                f"{message}; make room, and the same command goes on {since}" if self.processes.is_first else ""
            )
        self._warn(f"{message}; training goes on, and would be continued {since} until there is room")

    def summarise(self) -> None:
        """Tells how fast it went."""
        if line := self.throughput.summary():
            self.status.note(line)
            logger.info("%s", line)

    def close(self) -> None:
        if self.log:
            self.log.close()

    def _write_checkpoint(self, report: StepReport) -> str:
        """Returns what went wrong, or ''."""
        tensors = {stem: named for run in self.runs for stem, named in run.tensors().items()}
        students = {run.name: run.state() for run in self.runs}
        state = {"step": report.step, "tokens": report.tokens, "students": students}
        try:
            if self.log:
                self.log.flush()
            save_checkpoint(self.folder / "checkpoints", report.step, tensors, state, keep=self.stage.keep_checkpoints)
        except OSError as error:
            return describe_os_error(error)
        return ""

    def _check_numbers(self, step: int) -> None:
        """Tells updates that were left out since the last look.

        Raises:
            TrainingFailed: more than the stage allows, or nothing but overflows in fp16. Only the first process's has a
                message.
        """
        for run in self.runs:
            if run.scaler.is_enabled() and run.scaler.get_scale() < _LOST_SCALE:
                raise TrainingFailed(
                    f"student '{run.name}': in fp16 the gradients overflow whatever the loss is multiplied by "
                    f"({run.scaler.get_scale():.0e} at step {step:,}); use precision bf16 or fp32"
                    if self.processes.is_first else ""
                )  # fmt: skip
            total, new, first = run.tell_left_out()
            if not new:
                continue
            is_over = total > self.stage.skip_bad_steps
            if self.processes.is_first:
                found = self._describe_bad_step(run.name, first, new)
                if is_over:
                    raise TrainingFailed(
                        f"{found}; lower learning_rate, use precision fp32, or leave such updates out with "
                        f"skip_bad_steps ({total} so far, {self.stage.skip_bad_steps} allowed); the last checkpoint is "
                        f"from before"
                    )
                self._warn(f"{found}; left out {total} of {self.stage.skip_bad_steps} allowed")
            elif is_over:
                raise TrainingFailed("")

    def _describe_bad_step(self, student: str, step: int, count: int) -> str:
        batches, rows = self.setting.whole_step(step)
        first, last = batches[0].samples.start, batches[-1].samples.stop - 1
        more = f" and {count - 1} more since" if count > 1 else ""
        try:
            path = write_bad_batch(self.folder, step=step, students=[student], batches=batches, rows=rows)
            where = f"they are in {path}"
        except OSError as error:
            where = f"they could not be written ({describe_os_error(error)})"
        return (
            f"student '{student}': loss or gradient is not finite at step {step:,}{more} (samples {first:,} to "
            f"{last:,}; {where}), so the weights were not changed by it"
        )

    def _log_losses(self, report: StepReport) -> None:
        speed: dict[str, float] = {}
        if report.values:
            newest = next(iter(report.values.values()))
            speed = {"mfu": self.throughput.add(report.tokens - self.logged_tokens, newest)}
        if report.values is not None:
            self.logged_tokens = report.tokens
        for name, values in (report.values or {}).items():
            self._write("train", name, report, {**values, **speed})
            if name == self.runs[0].name:
                self.shown = {"loss": values["loss"], "tokens_per_second": values["tokens_per_second"]}
        for name, losses in report.losses.items():
            for step, loss in losses.items():
                usual = self.spikes[name].usual(loss)
                if usual is not None:
                    size = self.stage.global_batch_size
                    self._warn(
                        f"student '{name}': loss {loss:.4g} at step {step:,} (samples {(step - 1) * size:,} to "
                        f"{step * size - 1:,}) stands out from the last ones ({usual:.4g})"
                    )

    def _measure_gradients(self, report: StepReport) -> None:
        """Gradient norms of the terms, on the same sequences each time and on every process.

        All processes take part, though the first alone writes: where the teacher is sharded it runs on all or none.
        """
        for run in self.runs if self._probe else []:
            self._write("gradients", run.name, report, describe_norms(run.objective, self._term_norms(run)))

    def _term_norms(self, run: StudentRun) -> dict[str, float]:
        assert self._probe is not None
        teacher, batch = self._probe
        batch = batch.to(self.processes.device)
        return term_gradient_norms(run.objective, batch, teacher, scale=run.scaler.get_scale())

    def _balance(self, step: int) -> None:
        """Weighs the terms anew, where a student asks for it after this step; the first process measures for all."""
        for run in self.runs if self._probe else []:
            if not run.settings.balance_every or step % run.settings.balance_every:
                continue
            weights, norms = run.objective.term_weights(), self._term_norms(run)
            if lost := sorted(weights.keys() - norms.keys()):  # overflows of fp16; others are not measured without them
                self._warn(f"student '{run.name}': balance of step {step:,} left out, no finite gradient: {lost[0]}")
                norms = {}
            found = balance_factors(norms, weights, run.term_shares())
            factors = numbers_from_first([found.get(name, 0.0) for name in weights], self.processes)
            run.objective.balance({name: factor for name, factor in zip(weights, factors, strict=True) if factor})

    def _is_dev_step(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def _evaluate(self, run: StudentRun, report: StepReport) -> None:
        """Measures what will be published, and beside a moving average the weights that it is the average of."""
        if self.dev is None:
            return
        autocast = run.objective.autocast
        values = evaluate_masked_lm(run.published, self.dev, self.processes, autocast, self.stop)
        if values is not None and run.average is not None:
            last = evaluate_masked_lm(run.objective.student, self.dev, self.processes, autocast, self.stop)
            values = last and values | {f"unaveraged_{name}": last[name] for name in ("mlm_loss", "accuracy")}
        self._write_dev(run.name, report, values)

    def _write_dev(self, name: str, report: StepReport, values: Mapping[str, float] | None) -> None:
        if values is None:
            raise StageStopped(self.stop.signum or 15, report.step)
        self._write("dev", name, report, values)

    def _write(self, split: str, student: str, report: StepReport, values: Mapping[str, float]) -> None:
        if self.log:
            samples = report.step * self.stage.global_batch_size
            self.log.write(
                step=report.step, samples=samples, tokens=report.tokens, split=split, student=student, values=values
            )
            if split == "train":
                logger.info("step %d, %s: loss %.4f", report.step, student, values["loss"])

    def _warn(self, message: str) -> None:
        """A line in the stage's log file and before the user."""
        if self.processes.is_first:
            logger.warning(message)
            self.status.note(message)

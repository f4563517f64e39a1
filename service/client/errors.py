"""What can go wrong between a client and a service: one small tree."""

from typing import Any

from service.job import JobView, fate
from service.problems import FieldError, ProblemDocument

HOW_TO_GIVE_A_KEY = "a client gives one by PFGMPP_KEY, Client(key=...) or --key"


class ClientError(Exception):
    """The service cannot be reached, refused, or failed; the message says which, and why."""

    code = "client-error"

    def problem(self) -> dict[str, Any]:
        """The error for a program: a stable `code`, and `detail` in words."""
        return {"code": self.code, "detail": str(self)}


class Unreachable(ClientError):
    """No answer could be had."""

    code = "unreachable"

    def __init__(self, message: str, *, is_passing: bool = True, is_nobody: bool = False):
        super().__init__(message)
        self.is_passing = is_passing
        """Whether it may be otherwise in a while."""
        self.is_nobody = is_nobody
        """Whether nothing listens at that address."""


class Refused(ClientError):
    """The service answered with a problem."""

    def __init__(self, problem: ProblemDocument, retry_after_seconds: float | None = None):
        later = "" if retry_after_seconds is None else f" (try again in {retry_after_seconds:g} s)"
        how = f"; {HOW_TO_GIVE_A_KEY}" if problem.code == "unauthorized" else ""
        super().__init__(f"{problem.code}: {problem.detail}{later}{how}")
        self.document = problem
        self.code: str = problem.code
        self.status: int = problem.status
        self.detail: str = problem.detail
        self.errors: list[FieldError] = problem.errors
        """What is wrong, by field."""
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_passing(self) -> bool:
        """Whether it may be otherwise in a while: a limit on what is asked at once, or a service that cannot now."""
        return self.status in {502, 503, 504} or (self.status == 429 and self.retry_after_seconds is not None)

    def problem(self) -> dict[str, Any]:
        """The problem as the service said it, with when to try again."""
        return self.document.model_dump() | {"retry_after_seconds": self.retry_after_seconds}


class JobFailed(ClientError):
    """A job ended without its images."""

    def __init__(self, job: JobView):
        why = f": {job.error.detail}" if job.error else ""
        super().__init__(f"job {job.id} {fate(job.status)}{why}")
        self.job = job
        self.code: str = job.error.code if job.error else job.status

    def problem(self) -> dict[str, Any]:
        """Why it failed, and the job."""
        return {**super().problem(), "job": self.job.model_dump(mode="json")}

"""Settings: read once from the environment (PFGMPP_*, and REDIS_URL) or the command line, and passed down."""

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.addresses import Network, networks

OF_CLIENTS = {"PFGMPP_SERVER", "PFGMPP_KEY"}
"""Variables that commands read which ask a service."""

OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OTLP_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

REDIS_URL = re.compile(r"(rediss?|unix)://|rediss?\+cluster://[^/]|rediss?\+sentinel://[^/]+/[^/?]")

SIGNING_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{32,88}={0,2}")
"""24 to 64 bytes in base64, as Standard Webhooks has it."""

SECRETS = {"webhook_secret", "redis_url"}
"""Settings that are not repeated in messages, for they may hold a password."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Every setting of every process. Each is PFGMPP_<NAME> in the environment; REDIS_URL goes by that name too."""

    model_config = SettingsConfigDict(env_prefix="PFGMPP_", frozen=True, populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one.")
    keys_file: Path | None = Field(
        None, description="API keys, as `pfgmpp keys` makes them; without it anyone who reaches the API may use it."
    )
    allow_anyone: bool = Field(
        False, description="Listen on other addresses than the loopback's without keys, on a network that is trusted."
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("redis_url", "REDIS_URL", "PFGMPP_REDIS_URL"),
        description="Redis or Valkey to use (also `redis+cluster://HOST,HOST`, `redis+sentinel://HOST,HOST/SERVICE`); "
        "without it `pfgmpp serve` starts its own.",
    )
    queue: str = Field("main", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Name of the queue within Redis.")
    data_dir: Path = Field(
        Path(".pfgmpp"),
        description="Where the embedded Redis keeps its data, and workers what they found out about networks.",
    )
    results_dir: Path = Field(
        default_factory=lambda known: Path(known.get("data_dir", ".pfgmpp")) / "results",
        description="Result store, shared by API and workers; `results` in the data directory by default.",
    )
    results_url: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]*)?$",
        description="Result store in S3 or the like, in place of the directory: `s3://BUCKET/PREFIX`. The rest is "
        "taken from `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.",
    )
    model_store: Path | None = Field(None, description="Directory of checkpoints; the shipped ones by default.")
    models: str = Field(
        "*", description="Which models of the store to serve: patterns, such as `digits-*`, with commas."
    )
    model_memory_mb: int | None = Field(
        None,
        ge=1,
        description="Memory for a worker's networks; what does not fit is loaded when it is asked for. All by default.",
    )
    workers: int = Field(1, ge=1, le=256, description="Worker processes of `pfgmpp serve`.")
    worker_name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]{1,128}$", description="A worker's name; host and process id by default."
    )
    worker_index: int = Field(0, ge=0, description="Which CUDA device `auto` takes, counted round.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a worker; by default its share of the cores but one."
    )
    batch_images: int = Field(64, ge=1, le=4096, description="Most images in one network call.")
    batching: Literal["inflight", "by-key"] = Field(
        "inflight", description="`by-key`: whole batches of equal jobs, one after the other; for comparison."
    )
    patience: Annotated[float, Field(ge=0, le=3600)] = Field(
        60.0, description="Seconds for which a job lets shorter ones go first, by evaluation that they are shorter."
    )
    precision: Literal["exact", "fast"] = Field("exact", description="Precision of requests that name none.")
    compile: bool = Field(
        True,
        description="Compile small `fast` networks in the background; needs a C++ compiler, and the data directory.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of a worker's own /metrics; 9100 when started by `pfgmpp worker`."
    )

    max_count: int = Field(256, ge=1, description="Most images in one request.")
    max_pixels: int = Field(2**26, ge=1, description="Most pixels in one grid.")
    max_body_bytes: int = Field(1_000_000, ge=1000, description="Largest request body.")
    max_queued_evaluations: int = Field(
        20_000_000, ge=1, description="Network evaluations (images x evaluations each) accepted but not done."
    )
    heartbeat_seconds: Seconds = Field(5.0, description="How often workers show that they live.")
    progress_seconds: Seconds = Field(0.1, description="How often progress is noted, at most.")
    lease_seconds: Seconds = Field(
        30.0,
        description="How long a batch stays a worker's without a sign of life; at least twice "
        "`PFGMPP_HEARTBEAT_SECONDS` and `PFGMPP_PROGRESS_SECONDS` together.",
    )
    reap_seconds: Seconds = Field(0.5, description="How often lost leases are looked for, and webhooks to call.")
    hang_seconds: Seconds = Field(
        600.0, description="After so long in one network call a worker gives up, and is started anew."
    )
    max_attempts: int = Field(3, ge=1, description="How often a job is tried before it fails.")
    store_seconds: Seconds = Field(2.0, description="How often workers look for new checkpoints.")
    retention_seconds: Seconds = Field(3600.0, description="How long results are kept.")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        description="How long a stopping API still answers, not ready and taking no jobs, for load balancers.",
    )
    grace_seconds: Seconds = Field(10.0, description="How long a stopping worker may finish its batch.")
    webhook_secret: SecretStr | None = Field(
        None,
        description="By which webhooks are signed, `whsec_` and 24 to 64 bytes in base64; without it none is taken.",
    )
    webhook_allow: str | None = Field(
        None, description="Networks that webhooks may call beside the public internet: `10.0.0.0/8`, more with commas."
    )
    webhook_tries: int = Field(
        9,
        ge=1,
        le=20,
        description="How often a webhook is called that fails: again after 5 s, then after twice as long each time.",
    )
    log_format: Literal["text", "json"] = Field("text", description="One line per event, to read or to parse.")

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url and not REDIS_URL.match(url):
            raise ValueError(
                "must begin with redis://, rediss:// or unix://, or be redis+cluster://HOST,HOST or "
                "redis+sentinel://HOST,HOST/SERVICE"
            )
        return url

    @field_validator("lease_seconds")
    @classmethod
    def _outlasts_renewals(cls, lease: float, info: ValidationInfo) -> float:
        # A worker looks every progress_seconds whether a heartbeat has passed since it last renewed its leases.
        between = sum(info.data.get(name, 0.0) for name in ("heartbeat_seconds", "progress_seconds"))
        if lease < 2 * between:
            raise ValueError(
                f"must be at least {2 * between:g}, for leases are renewed up to {between:g} s apart; raise it, or "
                "lower heartbeat_seconds or progress_seconds"
            )
        return lease

    @field_validator("webhook_secret")
    @classmethod
    def _is_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret and not SIGNING_SECRET.fullmatch(secret.get_secret_value()):
            raise ValueError(
                "must be whsec_ and 24 to 64 random bytes in base64 (`openssl rand -base64 32` makes some)"
            )
        return secret

    @field_validator("webhook_allow")
    @classmethod
    def _are_networks(cls, text: str | None) -> str | None:
        networks(text or "")
        return text

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        """What webhooks may call beside the public internet."""
        return networks(self.webhook_allow or "")

    @classmethod
    def unknown_variables(cls) -> Iterator[tuple[str, str]]:
        """Variables of the environment that look like a setting and are none, and which is most like them, if any."""
        known = {f"PFGMPP_{name.upper()}" for name in cls.model_fields} | OF_CLIENTS
        for variable in sorted(name for name in os.environ if name.startswith("PFGMPP_") and name not in known):
            yield variable, next(iter(get_close_matches(variable, known, 1)), "")

    @property
    def patience_seconds(self) -> float:
        """The patience that counts: with `by-key` jobs go in the order of their submission."""
        return self.patience if self.batching == "inflight" else 0.0

    def environment(self) -> dict[str, str]:
        """The environment variables that make the same settings in another process."""
        given = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in self
            if value is not None
        }
        url = given.pop("redis_url", None)
        variables = {f"PFGMPP_{name.upper()}": value for name, value in given.items()}
        return variables | ({"REDIS_URL": url} if url else {})


def faults(error: ValidationError) -> Iterator[str]:
    """What is wrong with settings, by name."""
    for each in error.errors():
        if each["type"] != "default_factory_not_called":
            name = ".".join(map(str, each["loc"]))
            found = "" if name in SECRETS else f" (it is {each['input']!r})"
            yield f"{name}: {each['msg'].removeprefix('Value error, ')}{found}"


def trace_exporter() -> Literal["otlp", "console"] | None:
    """Where traces go, by the standard variables of OpenTelemetry, of which its SDK reads the others; None for nowhere.

    Raises ValueError for one that asks for what there is not.
    """
    wish = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(os.environ.get, OTLP_ENDPOINTS)) else "none")
    if wish == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if wish not in {"otlp", "console"}:
        raise ValueError(f"OTEL_TRACES_EXPORTER={wish}: must be otlp, console or none")
    for name in OTLP_PROTOCOLS:
        if os.environ.get(name, "http/protobuf") != "http/protobuf":
            raise ValueError(f"{name}={os.environ[name]}: must be http/protobuf, which collectors take on port 4318")
    return wish  # type: ignore[return-value]

# syntax=docker/dockerfile:1
# Three images from one file; the last is what no --target means:
#   docker build --target cuda    -t dpo-flows:cuda .     the flow, its command line and a worker; torch for NVIDIA GPUs
#   docker build --target servers -t dpo-flows:servers .  MLflow's and Prefect's servers and their drivers, without torch
#   docker build --target cpu     -t dpo-flows:cpu .      as cuda, with torch's CPU build
#   docker run --rm -v dpo-home:/dpo dpo-flows:cpu dpo demo

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# What builds: pip, its constraints and the project's wheel. Nothing of it is in an image but the virtual environments.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./

FROM build AS wheel
COPY pyproject.toml README.md ./
COPY dpo_core dpo_core
COPY flows flows
COPY deployments deployments
COPY recipes recipes
RUN /opt/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir /wheels .

# torch before the project: a change of ours leaves the large layer alone.
FROM build AS venv-cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/venv/bin/python -m pip install --quiet --index-url "${TORCH_CPU_INDEX}" torch
COPY --from=wheel /wheels /wheels
RUN set -- /wheels/*.whl && /opt/venv/bin/python -m pip install --quiet "$1[servers]" \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes pip setuptools

FROM build AS venv-cuda
RUN /opt/venv/bin/python -m pip install --quiet torch
COPY --from=wheel /wheels /wheels
RUN set -- /wheels/*.whl && /opt/venv/bin/python -m pip install --quiet "$1[servers]" \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes pip setuptools

FROM build AS venv-servers
RUN /opt/venv/bin/python -m pip install --quiet \
        mlflow prefect prefect-redis asyncpg psycopg2-binary flask-wtf boto3 fastapi sqlalchemy \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes pip setuptools

# What runs: a user without rights, a home for runs and caches, no compiler, no pip.
FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --create-home --uid 1000 dpo && mkdir -p /dpo && chown dpo:dpo /dpo
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true DPO_HOME=/dpo HF_HOME=/dpo/cache PREFECT_HOME=/dpo/prefect \
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30
USER 1000
WORKDIR /dpo
VOLUME /dpo
# No ENTRYPOINT: Prefect's Docker and Kubernetes workers give the whole command.

FROM runtime AS servers
COPY --from=venv-servers /opt/venv /opt/venv
# HEALTH_URL is the address that says that the server is well: compose.yaml sets it.
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s --retries=5 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(os.environ['HEALTH_URL'], timeout=8)"]
CMD ["mlflow", "server", "--help"]

FROM runtime AS cuda
COPY --from=venv-cuda /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s CMD ["dpo", "--version"]
CMD ["dpo", "--help"]

FROM runtime AS cpu
COPY --from=venv-cpu /opt/venv /opt/venv
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s CMD ["dpo", "--version"]
CMD ["dpo", "--help"]

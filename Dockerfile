# syntax=docker/dockerfile:1
# docker build -t dpo-flows . && docker run --rm -v "$PWD/runs:/dpo/runs" -v "$PWD/mlruns:/dpo/mlruns" dpo-flows demo

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY dpo_core dpo_core
COPY flows flows
COPY deployments deployments
COPY recipes recipes
RUN /opt/venv/bin/python -m pip install --quiet .

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 dpo && mkdir -p /dpo/runs /dpo/mlruns && chown -R dpo /dpo
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER dpo
WORKDIR /dpo
ENTRYPOINT ["dpo"]
CMD ["--help"]

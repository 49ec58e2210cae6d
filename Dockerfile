# One image for the three services on the CPU; which one runs is the command. docker-compose.yml uses it.
# No BuildKit needed: it builds with the classic builder too.
# By digest where it matters: --build-arg BASE=python:3.11-slim@sha256:… (docs/docker.md says how to find it).
ARG BASE=python:3.11-slim
FROM ${BASE}

# Where pip shall look besides, such as PyTorch's CPU wheels, and a host to trust without TLS; see docs/docker.md.
ARG PIP_FIND_LINKS=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_TRUSTED_HOST=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libnuma1 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH VIRTUAL_ENV=/venv

COPY requirements/torch-cpu.txt requirements/hashed/cpu.txt /requirements/
RUN pip install -r /requirements/torch-cpu.txt
RUN pip install --no-deps --require-hashes -r /requirements/cpu.txt

RUN useradd --create-home --uid 1000 research && mkdir -p /app/data /app/runs && chown -R research /app
WORKDIR /app
COPY pyproject.toml README.md LICENSE /app/
COPY research /app/research
COPY services /app/services
COPY builtin /app/builtin
COPY apps /app/apps
COPY cli /app/cli
RUN pip install --no-deps --editable .

USER research
ENTRYPOINT ["research"]
CMD ["--help"]

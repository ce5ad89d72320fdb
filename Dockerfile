# One image for every role: directory, node, application. Build it on another base with
#   docker build --build-arg BASE_IMAGE=debian:12 .
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

# A bare Debian or Ubuntu has no python3, or has it without the venv module.
RUN python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || { apt-get update -qq \
         && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv \
         && rm -rf /var/lib/apt/lists/*; }

WORKDIR /opt/dsm
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY . .
RUN pip install --quiet --no-cache-dir --constraint constraints.txt setuptools mypy \
    && pip install --quiet --no-cache-dir --constraint constraints.txt --no-build-isolation '.[demo,keys]'

WORKDIR /
CMD ["dsm", "--help"]

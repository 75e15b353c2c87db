# Images of stequant; docs/containers.md tells how to build, run and configure them.
#   docker build --target server -t stequant:server .    the server; torch for the CPU, or for CUDA (TORCH_INDEX)
#   docker build --target batch  -t stequant:batch  .    the client and the command line, without torch
#   docker build --target test   -t stequant:test   .    runs the fast tests
#
# Dependencies and code go separate ways, so that a change of the code does not touch the large layers:
#   requirements -> wheels-* -> environment-*   change with the lists in pyproject.toml and with constraints.txt
#   package -> code                             change with the code
# A target lays the code over its environment.
ARG PYTHON_IMAGE=python:3.11-slim
# Where wheels are made: an image with a compiler, for a machine that a dependency has no wheel for.
ARG BUILD_IMAGE=${PYTHON_IMAGE}

# The lists of pyproject.toml, a file each: an edit of anything else in it leaves what follows as it is.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /lists
COPY pyproject.toml ./
RUN list() { python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))$1, sep='\n')"; } \
    && list "['build-system']['requires']" >build.txt \
    && list "['project']['dependencies']" >client.txt \
    && list "['project']['optional-dependencies']['server']" >server.txt \
    && list "['project']['optional-dependencies']['dev']" >dev.txt

FROM ${BUILD_IMAGE} AS wheels
# pip's own variables, where PyPI is not at hand: another index; a folder or a page with wheels.
ARG PIP_INDEX_URL=
ARG PIP_FIND_LINKS=
ARG PIP_TRUSTED_HOST=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /lists
COPY constraints.txt ./

FROM wheels AS wheels-client
COPY --from=requirements /lists/client.txt ./
RUN pip wheel --wheel-dir /wheels -c constraints.txt -r client.txt

# TORCH_INDEX is where torch comes from: PyTorch's wheels for the CPU; for CUDA https://download.pytorch.org/whl/cu130
# and the like; empty for the build that the package index has (PyPI's for Linux is CUDA's).
FROM wheels AS wheels-server
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip wheel --wheel-dir /wheels -c constraints.txt torch
COPY --from=requirements /lists/client.txt /lists/server.txt ./
RUN pip wheel --wheel-dir /wheels --find-links /wheels -c constraints.txt -r client.txt -r server.txt

FROM wheels AS wheels-dev
COPY --from=requirements /lists/dev.txt ./
RUN pip wheel --wheel-dir /wheels -c constraints.txt -r dev.txt

FROM wheels AS package
COPY --from=requirements /lists/build.txt ./
RUN pip install -r build.txt
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY service service
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# A virtual environment without pip, which finds the code in a folder of its own.
FROM ${PYTHON_IMAGE} AS environment
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /opt/stequant \
    && /opt/stequant/bin/python -c "import site; print('/opt/stequant/code', file=open(site.getsitepackages()[0] + '/stequant.pth', 'w'))"
WORKDIR /lists

FROM environment AS environment-client
COPY --from=wheels-client /wheels /wheels
COPY --from=wheels-client /lists ./
RUN pip --python /opt/stequant/bin/python install --no-index --find-links /wheels -c constraints.txt -r client.txt

FROM environment AS environment-server
COPY --from=wheels-server /wheels /wheels
COPY --from=wheels-server /lists ./
RUN pip --python /opt/stequant/bin/python install --no-index --find-links /wheels -c constraints.txt -r client.txt -r server.txt

FROM environment-server AS environment-dev
COPY --from=wheels-dev /wheels /wheels
COPY --from=wheels-dev /lists/dev.txt ./
RUN pip --python /opt/stequant/bin/python install --no-index --find-links /wheels -c constraints.txt -r dev.txt

FROM environment AS code
COPY --from=package /wheels /wheels
RUN pip --python /opt/stequant/bin/python install --no-index --no-deps --target /opt/stequant/code /wheels/*.whl

# What all targets share: a user with a fixed number, and nothing that needs a writable root or a capability.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 stequant \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin stequant
ENV PATH=/opt/stequant/code/bin:/opt/stequant/bin:$PATH PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
STOPSIGNAL SIGTERM

FROM runtime AS test
COPY --from=environment-dev /opt/stequant /opt/stequant
COPY --from=code /opt/stequant/code /opt/stequant/code
WORKDIR /source
COPY . .
ENV HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
USER 10001:10001
CMD ["python", "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not container"]

FROM runtime AS batch
COPY --from=environment-client /opt/stequant /opt/stequant
COPY --from=code /opt/stequant/code /opt/stequant/code
USER 10001:10001
ENTRYPOINT ["stequant"]
CMD ["batch", "--help"]
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="stequant batch" \
      org.opencontainers.image.description="Client and batch jobs of stequant, without torch" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The last target is what a build without --target makes.
FROM runtime AS server
COPY --from=environment-server /opt/stequant /opt/stequant
COPY --from=code /opt/stequant/code /opt/stequant/code
USER 10001:10001
ENV STEQUANT_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["stequant", "ready"]
ENTRYPOINT ["stequant"]
CMD ["serve"]
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="stequant server" \
      org.opencontainers.image.description="Straight-through-estimator quantizers behind HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

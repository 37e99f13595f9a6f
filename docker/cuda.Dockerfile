# CUDA image: training. docker build -f docker/cuda.Dockerfile -t dipole-vla:cuda .
# The devel base brings nvcc, with which DeepSpeed compiles the ops that a recipe of yours may ask for.
# docker/requirements.txt has every package with its hashes; docs/clusters.md says how it is made.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
WORKDIR /opt/dipole-vla
COPY docker/requirements.txt docker/requirements.txt
RUN pip install --require-hashes -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY dipole_vla dipole_vla
COPY navsim_adapter navsim_adapter
COPY recipes recipes
RUN pip install --no-deps . && pip check && cd / && python -m navsim_adapter.metric.machine_code
RUN useradd --create-home driver
USER driver
WORKDIR /home/driver
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m CMD ["dipole-vla", "doctor"]
ENTRYPOINT ["dipole-vla"]
CMD ["--help"]

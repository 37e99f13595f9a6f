# CUDA image: training. docker build -f docker/cuda.Dockerfile -t dipole-vla:cuda .
# The devel base brings nvcc, with which DeepSpeed compiles its fused ops on first use.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential git && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/dipole-vla
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY dipole_vla dipole_vla
COPY navsim_adapter navsim_adapter
COPY recipes recipes
RUN pip install -c constraints.txt '.[train,report,deepspeed]'
RUN useradd --create-home driver
USER driver
WORKDIR /home/driver
ENTRYPOINT ["dipole-vla"]
CMD ["--help"]

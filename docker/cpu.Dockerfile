# CPU image: every command, the demo first; no tests. docker build -f docker/cpu.Dockerfile -t dipole-vla:cpu .
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dipole-vla
ENV DS_BUILD_OPS=0 DS_ACCELERATOR=cpu PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY dipole_vla dipole_vla
COPY navsim_adapter navsim_adapter
COPY recipes recipes
RUN pip install -c constraints.txt '.[train,report,deepspeed]' && cd / && python -m navsim_adapter.metric.machine_code
RUN useradd --create-home driver
USER driver
WORKDIR /home/driver
ENTRYPOINT ["dipole-vla"]
CMD ["--help"]

# The dependencies of every node, by lock; no code: jobs bring it (`runtime_env`).
#
#   docker build --target cpu -t registry.example.com/rationale:0.1.0-cpu .
#   docker build --target gpu -t registry.example.com/rationale:0.1.0-gpu .
#
# Not built here: no Docker daemon on the machines of this project yet. A test checks what it copies.
# Where pip takes a CUDA build of torch for the CPU image, name PyTorch's CPU wheel index:
#   --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.11-slim-bookworm AS base
# g++ and ninja's needs: DeepSpeed compiles its ops. wget: KubeRay's probes. openssh, rsync: Ray's launcher.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget openssh-client rsync procps libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray \
    && mkdir -p /tmp/rationale && chown ray:ray /tmp/rationale
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    RAY_USAGE_STATS_ENABLED=0 \
    TOKENIZERS_PARALLELISM=false \
    TORCH_EXTENSIONS_DIR=/opt/torch_extensions
WORKDIR /opt/rationale
COPY requirements/ requirements/
COPY pyproject.toml ./

FROM base AS cpu
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-deps -r requirements/cpu.txt -r requirements/cluster.txt
# Once here, instead of 90 s (or a dead lock) at the first training on each node.
RUN python -c "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load()" \
    && chown -R ray:ray /opt/torch_extensions
ENV VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0
USER ray

FROM base AS gpu
# The dependencies that pyproject.toml names, held by requirements/gpu.txt; vllm picks its CUDA build of torch.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['gpu'], sep='\n')" > wanted.txt \
    && pip install -c requirements/gpu.txt -r wanted.txt \
    && pip install --no-deps -r requirements/cluster.txt \
    && mkdir -p /opt/torch_extensions && chown ray:ray /opt/torch_extensions
USER ray

FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

RUN groupadd --gid 1000 user && useradd --uid 1000 --gid user --create-home user
WORKDIR /opt/app

# One step, so that no layer holds what inference never loads: Triton, which only
# torch.compile needs, dense solvers, cuDNN's recurrent networks, the second NVRTC,
# NVSHMEM's device code and the headers. Convolutions, cuBLAS and NVRTC stay.
COPY requirements.txt .
RUN sed '/^# --- training/,$d' requirements.txt > inference.txt \
 && pip install -r inference.txt \
 && pip uninstall --yes triton cuda-bindings nvidia-cusolver-cu12 \
 && site="$(pip show torch | sed -n 's/^Location: //p')" \
 && rm -r inference.txt "$site"/torch/include "$site"/torch/bin/protoc* "$site"/nvidia/*/include \
    "$site"/torch/lib/libtorch_cuda_linalg.so "$site"/nvidia/cudnn/lib/libcudnn_adv.so.9 \
    "$site"/nvidia/cuda_nvrtc/lib/*.alt.so.* "$site"/nvidia/nvshmem/lib/libnvshmem_device.* \
 && python -c "import torch, torchvision, timm, SimpleITK"

COPY LICENSE inference.py ./
COPY midog midog
COPY model model

USER user
ENTRYPOINT ["python", "inference.py"]

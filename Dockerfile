FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

RUN groupadd --gid 1000 user && useradd --uid 1000 --gid user --create-home user
WORKDIR /opt/app

# One step, so that no layer holds what inference never loads: Triton, which only
# torch.compile needs, dense solvers, cuDNN's recurrent networks, the second NVRTC,
# profilers, NVSHMEM's device code, headers, tests. Convolutions, cuBLAS and NVRTC
# stay. The last line proves the rest whole, and compiles just what is imported.
COPY requirements.txt .
RUN sed '/^# --- evaluation/,$d' requirements.txt > inference.txt \
 && pip install --no-compile -r inference.txt \
 && pip uninstall --yes triton cuda-bindings nvidia-cusolver-cu12 hf-xet \
 && site="$(pip show torch | sed -n 's/^Location: //p')" \
 && rm -r inference.txt "$site"/torch/include "$site"/torch/bin/protoc* "$site"/nvidia/*/include \
    "$site"/torch/lib/libtorch_cuda_linalg.so "$site"/nvidia/cudnn/lib/libcudnn_adv.so.9 \
    "$site"/nvidia/cuda_nvrtc/lib/*.alt.so.* "$site"/nvidia/nvshmem/lib/libnvshmem_device.* \
    "$site"/nvidia/cuda_cupti/lib/libnvperf_* "$site"/nvidia/cufft/lib/libcufftw.* \
 && find "$site" -name tests -type d -prune -exec rm -r {} + \
 && python -c "import torch, torchvision, timm, safetensors.torch, yaml, msgspec, PIL.TiffImagePlugin, tqdm" \
 && python -c "import tifffile, imagecodecs, openslide, pydicom"

COPY LICENSE inference.py ./
COPY midog midog
COPY model model
RUN python -m compileall -q inference.py midog

USER user
ENTRYPOINT ["python", "inference.py"]

# Two images: `exec`, the default, runs one job and ends; `invoke` is started once and asked for each case.
# A base pinned by its digest: ./build.sh --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS sources
WORKDIR /opt/app
COPY LICENSE inference.py ./
COPY midog midog
COPY model model
# Whatever the umask of the clone, the user below may read it. Hashes, because a copy may lose the files' times.
RUN chmod -R u=rwX,go=rX . && python -m compileall -q --invalidation-mode unchecked-hash inference.py midog

FROM ${BASE} AS inference
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN groupadd --gid 1000 user && useradd --uid 1000 --gid user --create-home user
WORKDIR /opt/app

# One step, so that no layer holds what inference never loads: dense solvers, cuDNN's recurrent networks, the second
# NVRTC, profilers, NVSHMEM's device code, headers, tests. Convolutions, cuBLAS and NVRTC stay. The last lines prove the
# rest whole, and compile just what is imported.
COPY requirements.lock .
RUN sed '/^# --- not in the container/,$d' requirements.lock > inference.lock \
 && pip install --no-compile --no-deps --require-hashes -r inference.lock \
 && site="$(pip show torch | sed -n 's/^Location: //p')" \
 && rm -r requirements.lock inference.lock "$site"/torch/include "$site"/torch/bin/protoc* "$site"/nvidia/*/include \
    "$site"/torch/lib/libtorch_cuda_linalg.so "$site"/nvidia/cudnn/lib/libcudnn_adv.so.9 \
    "$site"/nvidia/cuda_nvrtc/lib/*.alt.so.* "$site"/nvidia/nvshmem/lib/libnvshmem_device.* \
    "$site"/nvidia/cuda_cupti/lib/libnvperf_* "$site"/nvidia/cufft/lib/libcufftw.* \
 && find "$site" -name tests -type d -prune -exec rm -r {} + \
 && python -c "import torch, torchvision, timm, safetensors.torch, yaml, msgspec, PIL.TiffImagePlugin, tqdm" \
 && python -c "import tifffile, imagecodecs, openslide, pydicom"
COPY --from=sources /opt/app /opt/app
USER user

FROM inference AS invoke
LABEL org.grand-challenge.api-method="invoke"
# 1 or 2 loads that track's system alone.
ARG TRACK=""
ENV MIDOG_TRACK=${TRACK}
EXPOSE 4743
ENTRYPOINT ["python", "inference.py", "--serve"]

FROM inference AS exec
ENTRYPOINT ["python", "inference.py"]

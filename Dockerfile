FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN groupadd --gid 1000 user && useradd --uid 1000 --gid user --create-home user
WORKDIR /opt/app

# One step, so that what inference never loads is in no layer: the compiler
# stack of torch.compile, cuDNN's recurrent networks, dense solvers, headers.
COPY requirements.txt .
RUN sed '/^# --- training/,$d' requirements.txt > inference.txt \
 && pip install --no-compile -r inference.txt \
 && pip uninstall --yes triton sympy networkx mpmath hf-xet \
 && site="$(python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null || python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && rm -rf inference.txt "$site"/nvidia/cusolver/lib/libcusolverMg* "$site"/nvidia/*/include "$site"/torch/include
COPY LICENSE inference.py ./
COPY midog midog
COPY model model

USER user
ENTRYPOINT ["python", "inference.py"]

# The page and the service on a CPU, offline: the embedded models are in the package.
#     docker build -t qamdt . && docker run --rm -p 127.0.0.1:7860:7860 -v qamdt:/data qamdt
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WORKDIR /opt/qamdt

# torch alone, so that a change of the project does not fetch it again.
COPY constraints.txt ./
RUN pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch

COPY pyproject.toml README.md LICENSE train_qamdt.py ./
COPY qamdt qamdt
COPY whisq whisq
COPY pipelines pipelines
COPY data_prep data_prep
COPY configs configs
RUN pip install -c constraints.txt ".[studio]" && rm -rf /opt/qamdt

RUN useradd --create-home --uid 1000 qamdt && mkdir /data && chown qamdt /data
USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health')"]
ENTRYPOINT ["qamdt"]
CMD ["studio", "--host", "0.0.0.0", "--port", "7860", "--folder", "/data"]

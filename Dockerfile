# docker build -t knownot . && docker run -v ./model.onnx:/model/model.onnx:ro -p 127.0.0.1:8000:8000 knownot
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .
# Without the wheel's own dependencies: an exported file needs no torch, which is ten times the rest.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/knownot \
    && pip --python /opt/knownot/bin/python install --no-cache-dir --group serve-onnx \
    && pip --python /opt/knownot/bin/python install --no-cache-dir --no-deps /dist/*.whl

FROM python:${PYTHON}-slim
COPY --from=build /opt/knownot /opt/knownot
ENV PATH=/opt/knownot/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["knownot", "serve", "--host", "0.0.0.0"]
CMD ["/model/model.onnx"]

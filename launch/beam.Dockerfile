# The image of Beam's workers, for launch/beam.sh; Python and Beam must be of the versions that start the pipeline:
# docker build -f launch/beam.Dockerfile -t IMAGE . && docker push IMAGE
FROM apache/beam_python3.12_sdk:2.77.0 AS beam
FROM python:3.12-slim
WORKDIR /gpt_jax
COPY . .
RUN pip install --no-cache-dir -e ".[data,beam]"
COPY --from=beam /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

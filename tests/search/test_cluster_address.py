import os
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray
from ray.core.generated.gcs_service_pb2 import CheckAliveReply

from tune_hpc.errors import ClusterError
from tune_hpc.search.ray_session import check_cluster


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Return a function that starts a server like the head of a cluster, and returns its address."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that a value of the code is removed after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    servers = []

    def start(token=None, version=ray.__version__):
        class Head(grpc.GenericRpcHandler):
            def service(self, call):
                assert call.method == "/ray.rpc.NodeInfoGcsService/CheckAlive"
                return grpc.unary_unary_rpc_method_handler(self.answer)

            def answer(self, request, context):
                if token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return CheckAliveReply(ray_version=version).SerializeToString()

        server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0)


def write_token(folder, token):
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(f"{token}\n", encoding="utf-8")


def test_cluster_without_a_token_accepts_a_client_without_one(cluster, tmp_path):
    write_token(tmp_path, "left over from another cluster")
    check_cluster(cluster())
    assert "RAY_AUTH_MODE" not in os.environ


def test_token_in_the_home_folder_is_used_if_required(cluster, tmp_path):
    write_token(tmp_path, "right")
    check_cluster(cluster(token="right"))
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_token_in_the_environment_takes_precedence(cluster, tmp_path, monkeypatch, variable):
    write_token(tmp_path, "another")
    (tmp_path / "named").write_text("right", encoding="utf-8")
    monkeypatch.setenv(variable, "right" if variable == "RAY_AUTH_TOKEN" else str(tmp_path / "named"))
    check_cluster(cluster(token="right"))
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_messages_on_a_missing_and_a_wrong_token_differ(cluster, tmp_path):
    address = cluster(token="right")
    with pytest.raises(ClusterError, match=r"requires a token, and this machine has none; copy ~/.ray/auth_token from"):
        check_cluster(address)
    write_token(tmp_path, "wrong")
    with pytest.raises(ClusterError, match="rejects the token of this machine; copy"):
        check_cluster(address)
    assert "RAY_AUTH_MODE" not in os.environ


def test_message_names_an_unreadable_token_file(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/not/there")
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH names /not/there, which cannot be read"):
        check_cluster(cluster(token="right"))


def test_message_on_another_version_has_the_remedy(cluster):
    with pytest.raises(ClusterError, match=r"runs Ray 1\.2\.3 and .*pip install ray==1\.2\.3"):
        check_cluster(cluster(version="1.2.3"))


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "local"])
def test_other_addresses_are_not_checked(address):
    check_cluster(address)

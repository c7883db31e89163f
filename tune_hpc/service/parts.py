"""What the routes share: the parts of the service, wired."""

from dataclasses import dataclass

from tune_hpc.cluster.client import JobClient
from tune_hpc.service.answers import Kept
from tune_hpc.service.catalogue import Catalogue
from tune_hpc.service.launching import Prompt
from tune_hpc.service.readings import Readings
from tune_hpc.service.statuses import Statuses
from tune_hpc.service.submissions import Submissions


@dataclass(frozen=True)
class Parts:
    """The parts of one service.

    Attributes:
        client: Who starts and steers jobs; its launcher keeps nobody waiting.
        catalogue: What may be asked for.
        statuses: How jobs stand.
        readings: What came of them.
        submissions: What starts them.
        kept: Answers that hold for a moment.
    """

    client: JobClient
    catalogue: Catalogue
    statuses: Statuses
    readings: Readings
    submissions: Submissions
    kept: Kept

    def has_changed(self) -> None:
        """Have everything looked at again, for something was changed here."""
        self.statuses.forget()
        self.kept.forget()


def make_parts(client: JobClient, catalogue: Catalogue) -> Parts:
    """Return the parts of a service of this client's storage."""
    prompt = JobClient(client.storage, Prompt(client.launcher))
    return Parts(prompt, catalogue, Statuses(prompt), Readings(), Submissions(prompt), Kept())

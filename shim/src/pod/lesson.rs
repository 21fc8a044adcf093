//! Machines of one template write to much the same pages. Which these are one of them is asked, once it has started its
//! pod; the answer lies beside the template, and the VMMs of the next give their machines those pages before they run. Owned
//! by who owns the machine. That all of it fails does nobody harm.

use std::time::Duration;

use tokio::time::timeout;

use super::journal::chain;
use super::roots::Roots;
use super::template::{Shape, Templates};
use super::vmm::Vmm;

/// How long the machine may take to compare its memory: some ten milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Which pages the machines of a template write to is found out once, of one whose pod has started, and spares the next
/// ones faults.
#[derive(Debug)]
pub struct Lesson {
    templates: Templates,
    shape: Shape,
}

impl Lesson {
    /// One is due if there is a template of `shape` and nobody has had the lesson.
    #[must_use]
    pub fn due(roots: &Roots, shape: Option<Shape>) -> Option<Self> {
        let templates = Templates::of(roots);
        shape
            .filter(|shape| templates.is_to_learn(shape))
            .map(|shape| Self { templates, shape })
    }

    /// Asks the machine and keeps the answer beside its template. A host where that fails goes without.
    pub async fn learn(self, vmm: &mut Vmm) {
        let learned = match timeout(LIMIT, vmm.touched()).await {
            Ok(Ok(pages)) => self
                .templates
                .learn(&self.shape, &pages)
                .map_err(|error| chain(&error)),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err("the VMM does not answer".to_owned()),
        };
        if let Err(message) = learned {
            tracing::debug!(message, "the pages that machines write to are not known");
        }
    }
}

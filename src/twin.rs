//! Two of one thing: the pre-trained model's first, the fine-tuned model's second, everywhere.

/// A value for each branch of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Twin<T> {
    pub pt: T,
    pub ft: T,
}

/// One of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Branch {
    Pt,
    Ft,
}

impl Branch {
    pub const BOTH: [Self; 2] = [Self::Pt, Self::Ft];
}

impl<T> Twin<T> {
    pub fn get(&self, branch: Branch) -> &T {
        match branch {
            Branch::Pt => &self.pt,
            Branch::Ft => &self.ft,
        }
    }

    pub fn get_mut(&mut self, branch: Branch) -> &mut T {
        match branch {
            Branch::Pt => &mut self.pt,
            Branch::Ft => &mut self.ft,
        }
    }

    pub fn new(pt: T, ft: T) -> Self {
        Self { pt, ft }
    }

    pub fn as_ref(&self) -> Twin<&T> {
        Twin { pt: &self.pt, ft: &self.ft }
    }

    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Twin<U> {
        Twin { pt: f(self.pt), ft: f(self.ft) }
    }

    pub fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Twin<U>, E> {
        Ok(Twin { pt: f(self.pt)?, ft: f(self.ft)? })
    }

    pub fn zip<U>(self, other: Twin<U>) -> Twin<(T, U)> {
        Twin { pt: (self.pt, other.pt), ft: (self.ft, other.ft) }
    }
}

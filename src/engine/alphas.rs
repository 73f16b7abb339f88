//! What alphas may be, and which blocks they need.

use crate::{
    Error, Result,
    twin::{Branch, Twin},
};

/// What alphas may be: any numbers from 0 on, at least one.
///
/// # Errors
/// A usage error for others.
pub fn check_alphas(alphas: &[f64]) -> Result<()> {
    if alphas.is_empty() {
        return Err(Error::usage("there is no alpha, expected one or more numbers from 0 on"));
    }
    match alphas.iter().find(|alpha| !alpha.is_finite() || **alpha < 0.0) {
        None => Ok(()),
        Some(alpha) => Err(Error::usage(format!("alpha is {alpha}, expected a number from 0 on"))),
    }
}

/// Whose blocks these alphas need: alpha 1 needs none of the base, alpha 0 none of the tuned model.
pub fn needed(alphas: impl Iterator<Item = f64> + Clone) -> Twin<bool> {
    let need = |without: f64| alphas.clone().any(|alpha| alpha != without);
    Twin::new(need(1.0), need(0.0))
}

/// The branches that are needed, at least one.
pub fn branches(needed: Twin<bool>) -> &'static [Branch] {
    match needed {
        Twin { pt: true, ft: false } => &[Branch::Pt],
        Twin { pt: false, ft: true } => &[Branch::Ft],
        _ => &Branch::BOTH,
    }
}

//! The JSON Schema of lab files, made of the types that read them.
//!
//! docs/lab-file.schema.json is the same for editors, and the table in docs/lab-file.md shows it to
//! people; tests keep both current.

use schemars::schema_for;

use super::types::File;
use crate::error::Result;
use crate::output::Text;

/// The schema, as JSON.
///
/// # Errors
/// It has no form in JSON.
pub fn schema() -> Result<Text> {
    Text::json(&schema_for!(File))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_schema_is_current() {
        let shipped = include_str!("../../../../docs/lab-file.schema.json");
        assert!(
            schema().unwrap().as_ref() == shipped,
            "run: vdectl lab schema > docs/lab-file.schema.json"
        );
    }
}

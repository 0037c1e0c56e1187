//! The JSON Schema of lab files, made of the types that read them.
//!
//! docs/lab-file.schema.json is the same for editors, and the table in docs/lab-file.md shows it to
//! people; tests keep both current.

use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, schema_for};
use serde_json::Value;

use super::types::File;
use crate::error::Result;
use crate::output::Text;

/// The schema, as JSON.
///
/// # Errors
/// It has no form in JSON.
pub fn schema() -> Result<Text> {
    let mut schema = schema_for!(File);
    RecursiveTransform(without_null).transform(&mut schema);
    Text::json(&schema)
}

/// Removes the type null, which TOML has not: what is optional can be left out.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            schema.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|one| one != "null"));
    }
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

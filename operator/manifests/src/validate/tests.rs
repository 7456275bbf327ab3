use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{mib, milli, whole};

#[test]
fn quantities_are_read_exactly() {
    for (text, want) in [("4", 4000), ("3500m", 3500), ("1.5", 1500), ("100u", 0), ("x", 0), ("", 0), ("2k", 2_000_000)]
    {
        assert_eq!(milli(&Quantity(text.to_owned())), want, "{text}");
    }
    for (text, want) in [("16Gi", 16384), ("1.5Gi", 1536), ("1048576", 1), ("1M", 0), ("2Ti", 2_097_152), ("5000m", 0)]
    {
        assert_eq!(mib(&Quantity(text.to_owned())), want, "{text}");
    }
    assert_eq!(whole(Some(&Quantity("8".to_owned()))), Some(8));
    assert_eq!(whole(Some(&Quantity("8k".to_owned()))), None);
    assert_eq!(whole(None), None);
}

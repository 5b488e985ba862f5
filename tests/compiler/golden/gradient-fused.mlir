module {
  func.func private @mx_sum(%arg0: tensor<4x8xf32>, %arg1: tensor<8xf32>) -> (tensor<4x8xf32>, tensor<f32>) {
    %0 = "mx.multiply"(%arg0, %arg1) : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
    %1 = "mx.tanh"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %2 = "mx.sum"(%1) {axes = array<i64: 0, 1>} : (tensor<4x8xf32>) -> tensor<f32>
    return %1, %2 : tensor<4x8xf32>, tensor<f32>
  }
  func.func private @mx_sum_2(%arg0: tensor<4x8xf32>, %arg1: tensor<4x8xf32>) -> tensor<8xf32> {
    %0 = "mx.full"() {dtype = f32, shape = array<i64>, value = 1 : i64} : () -> tensor<f32>
    %1 = "mx.multiply"(%arg0, %arg0) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %2 = "mx.subtract"(%0, %1) : (tensor<f32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %3 = "mx.multiply"(%2, %arg1) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %4 = "mx.sum"(%3) {axes = array<i64: 0>} : (tensor<4x8xf32>) -> tensor<8xf32>
    return %4 : tensor<8xf32>
  }
  func.func @main(%arg0: tensor<8xf32>, %arg1: tensor<4x8xf32>) -> (tensor<f32>, tensor<8xf32>) {
    %0:2 = call @mx_sum(%arg1, %arg0) : (tensor<4x8xf32>, tensor<8xf32>) -> (tensor<4x8xf32>, tensor<f32>)
    %1 = call @mx_sum_2(%0#0, %arg1) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8xf32>
    return %0#1, %1 : tensor<f32>, tensor<8xf32>
  }
}

module {
  func.func @main(%arg0: tensor<8xf32>, %arg1: tensor<4x8xf32>) -> (tensor<f32>, tensor<8xf32>) {
    %0 = "mx.multiply"(%arg1, %arg0) : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
    %1 = "mx.tanh"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %2 = "mx.sum"(%1) {axes = array<i64: 0, 1>} : (tensor<4x8xf32>) -> tensor<f32>
    %3 = "mx.multiply"(%1, %1) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %4 = "mx.full"() {dtype = f32, shape = array<i64>, value = 1 : i64} : () -> tensor<f32>
    %5 = "mx.subtract"(%4, %3) : (tensor<f32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %6 = "mx.multiply"(%5, %arg1) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %7 = "mx.sum"(%6) {axes = array<i64: 0>} : (tensor<4x8xf32>) -> tensor<8xf32>
    return %2, %7 : tensor<f32>, tensor<8xf32>
  }
}
